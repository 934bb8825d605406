"""The recipes reach their accuracy, and run alike on torch.nn and bpkit.nn; every mistake is one line."""

import subprocess
import sys

import pytest
import torch

from bpkit.cli import main
from bpkit.plugins import registry
from bpkit.train import build
from bpkit.train.config import parse, source

REACHED = {"digits-mlp": 0.97, "digits-cnn": 0.985, "digits-lstm": 0.97}


def run_of(name, *changes):
    return parse(registry().recipes[name].toml, name, changes)


@pytest.mark.parametrize("seed", [0, 1])
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
        (["inner.toml"], "layer 3, Linear(in_features=33, out_features=10, bias=True), cannot take [64, 32]"),
        (["digits-mlp", "--set", "train.epoch=1"], "--set train.epoch=1: unknown key"),
        (["digits-mlp", "--set", "train.epochs=ten"], "--set train.epochs=ten: train.epochs"),
        (["digits-mlp", "--set", "epochs"], "expected key=value"),
        (["digits-mlp", "--set", "data.name=mnist"], "unknown data 'mnist'"),
        (["digits-mlp", "--set", "optimizer.lrr=1"], "--set optimizer.lrr=1: unknown setting of optimizer"),
        (["digits-mlp", "--set", "loss.name=mse"], "loss MSELoss cannot take output [64, 10]"),
        (["digits-mlp", "--set", "train=5"], "--set train=5: train should be a table"),
        (["digits-mlp", "--device", "meta"], "device 'meta' cannot be used here"),
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
    deep = '["Linear", 64, 32], ["ReLU"], ["Linear", 33, 10]'
    inner = model.format(64).replace('["Linear", 64, 10]', deep)
    (tmp_path / "inner.toml").write_text(inner + "epochs = 3\n")
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


FILE = """summary = '''
epochz = 3
'''
[model]
layers = [
    ["Flatten"],
    ["Linear", 64, 10],
]
[optimizer]
name = "adamw"
lr = 0.01
[[regularizers]]
name = "l2"
[[regularizers]]
name = "l1"
strength = 0.1
[train]
epochs = 1
"""
CHANGES = {
    "setting": (
        "lr = 0.01",
        "lrr = 1",
        "line 11: unknown setting of optimizer 'adamw' 'lrr': did you mean 'lr'?",
    ),
    "value of a setting": ("lr = 0.01", 'lr = "x"', "line 9: optimizer 'adamw' cannot take"),
    "name": ('"adamw"', '"adamv"', "line 10: unknown optimizer 'adamv': did you mean 'adam'?"),
    "second of a kind": ("strength", "strenth", "line 16: unknown setting of regularizer 'l1' 'strenth'"),
    "name of the second": ('"l1"', '"l11"', "line 15: unknown regularizer 'l11': did you mean 'l1'?"),
    "no name": ('name = "l1"\n', "", "line 14: 'regularizers.1.name' is missing"),
    "layer": (
        '"Linear"',
        '"Lineer"',
        "line 7: model.layers[1]: unknown layer 'Lineer': did you mean 'Linear'?",
    ),
    "argument": ("10]", "10, {bais = true}]", "unknown setting of Linear 'bais': did you mean 'bias'?"),
    "no layer": ('["Linear", 64, 10]', '"ReLU"', "line 7: model.layers.1 should be a valid list"),
    "quoted key": ("epochs = 1", '"epoch" = 1', "line 18: unknown key 'train.epoch'; did you mean 'epochs'?"),
    "table": ("[train]", "[trian]", "line 17: unknown key 'trian'; did you mean 'train'?"),
    "figure": (
        "epochs = 1",
        "epochs = 0",
        "line 18: train.epochs should be greater than or equal to 1, not 0",
    ),
    "no length": ("epochs = 1", "clip = 1.0", "line 17: fit: give epochs or steps, one of them"),
    "metric": ("epochs", 'metrics = ["accurcy"]\nepochs', "line 18: unknown metric 'accurcy'"),
    "schedule": ("[train]", '[schedule]\nname = "cosin"\n[train]', "line 18: unknown schedule 'cosin'"),
}


@pytest.mark.parametrize("ending", ["\n", "\r\n"], ids=["lf", "crlf"])
@pytest.mark.parametrize(("right", "wrong", "message"), CHANGES.values(), ids=CHANGES)
def test_a_mistake_in_a_file_is_told_with_its_line(right, wrong, message, ending, tmp_path, capsys):
    assert FILE.count(right) == 1
    file = tmp_path / "run.toml"
    file.write_text(FILE.replace(right, wrong), newline=ending)
    assert main(["train", str(file), "--logdir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_length_that_is_set_takes_the_place_of_the_other():
    assert (run_of("digits-mlp", "train.steps=3").train.epochs, run_of("digits-mlp").train.steps) == (
        None,
        None,
    )


def test_a_recipe_is_itself_though_a_directory_has_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits-mlp").mkdir()
    assert source("digits-mlp", registry().recipes)[1] == "recipe digits-mlp"


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
