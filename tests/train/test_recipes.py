"""The recipes reach their accuracy, and run alike on torch.nn and bpkit.nn; every mistake is one line."""

import subprocess
import sys

import pytest
import torch

from bpkit.cli import main
from bpkit.plugins import registry
from bpkit.train import build
from bpkit.train.config import parse

REACHED = {"digits-mlp": 0.97, "digits-cnn": 0.985, "digits-lstm": 0.97}


def run_of(name, *changes):
    return parse(registry().recipes[name].toml, name, changes)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", REACHED)
def test_accuracy(name, seed):
    run = run_of(name, f"train.seed={seed}")
    training, validation, test = build.data(run)
    trainer = build.trainer(run, None, progress=False)
    trainer.fit(training, validation, epochs=run.train.epochs)
    assert trainer.evaluate(test)["accuracy"] >= REACHED[name]
    assert [finding for finding in trainer.findings if finding.severity == "critical"] == []


def curve(whose, permute):
    """Losses of 50 steps of the MLP recipe (no dropout), the order inside each batch permuted or not."""
    layers = '[["Flatten"],["Linear",64,128],["ReLU"],["Linear",128,10]]'
    run = run_of("digits-mlp", f"model.nn={whose}", f"model.layers={layers}")
    inputs, target = build.data(run)[0].tensors
    model = build.model(run.model, 0, registry())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = torch.nn.CrossEntropyLoss() if whose == "torch" else registry().losses["cross_entropy"].module()
    losses = []
    for step in range(50):
        index = torch.arange(64) + 20 * step
        index = index.flip(0) if permute else index
        value = loss(model(inputs[index]), target[index])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    return torch.tensor(losses, dtype=torch.float64)


def test_the_loss_curve_is_torchs():
    ours, theirs, permuted = curve("bpkit", False), curve("torch", False), curve("torch", True)
    itself = (permuted - theirs).abs().max()
    assert 0 < itself < 1e-4
    assert (ours - theirs).abs().max() <= 10 * itself


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digits-mpl"], "did you mean 'digits-mlp'"),
        (["missing.toml"], "no file missing.toml"),
        (["empty.toml"], "empty.toml is empty"),
        (["binary.toml"], "not text"),
        (["directory.toml"], "is a directory"),
        (["syntax.toml"], "line 2"),
        (["key.toml"], "line 4: unknown key 'train.epoch'; did you mean 'epochs'"),
        (["value.toml"], "line 4: train.epochs"),
        (["layer.toml"], "unknown layer 'Linaer': did you mean 'Linear'"),
        (["shape.toml"], "layer 1, Linear(in_features=32"),
        (["digits-mlp", "--set", "train.epoch=1"], "--set train.epoch=1: unknown key"),
        (["digits-mlp", "--set", "train.epochs=ten"], "--set train.epochs=ten: train.epochs"),
        (["digits-mlp", "--set", "epochs"], "expected key=value"),
        (["digits-mlp", "--set", "data.name=mnist"], "unknown data 'mnist'"),
        (["digits-mlp", "--set", "optimizer.lrr=1"], "lrr"),
        (["digits-mlp", "--device", "cuda:9"], "device 'cuda:9' cannot be used here"),
        (["digits-mlp", "--logdir", "empty.toml"], "is a file, not a directory"),
        (["digits-mlp", "--resume"], "--resume needs --logdir"),
        (["digits-mlp", "--resume", "--logdir", "nowhere"], "nothing to resume"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = '[model]\nlayers = [["Flatten"], ["Linear", {}, 10]]\n[train]\n'
    (tmp_path / "empty.toml").write_text("")
    (tmp_path / "binary.toml").write_bytes(bytes(range(256)))
    (tmp_path / "directory.toml").mkdir()
    (tmp_path / "syntax.toml").write_text("[model]\nlayers = [\n")
    (tmp_path / "key.toml").write_text(model.format(64) + "epoch = 3\n")
    (tmp_path / "value.toml").write_text(model.format(64) + 'epochs = "3"\n')
    (tmp_path / "layer.toml").write_text(model.format(64).replace("Linear", "Linaer") + "epochs = 3\n")
    (tmp_path / "shape.toml").write_text(model.format(32) + "epochs = 3\n")
    before = {each.name for each in tmp_path.iterdir()}
    assert main(["train", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert len(captured.err.splitlines()) == 1
    assert "Traceback" not in captured.err
    assert {
        each.name for each in tmp_path.iterdir() if not each.name.startswith(("runs", "nowhere"))
    } == before


def test_train_prints_its_verdict_and_where_everything_is(tmp_path):
    command = [sys.executable, "-m", "bpkit", "train", "digits-mlp", "--set", "train.epochs=2"]
    done = subprocess.run([*command, "--logdir", str(tmp_path / "a")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for words in ("1,293 examples to train on", "test  loss", "checkpoints", "tensorboard --logdir"):
        assert words in done.stdout
    assert "epoch 2" in done.stderr
    again = subprocess.run([*command, "--logdir", str(tmp_path / "a")], capture_output=True, text=True)
    assert (again.returncode, len(again.stderr.splitlines())) == (2, 1)
    assert "already holds a run" in again.stderr
