"""`bpkit watch`: scripts that know nothing of bpkit, as strangers write them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.amp.grad_scaler import GradScaler
from torch.nn.modules import module
from torch.optim import optimizer

from bpkit.cli import main
from bpkit.diagnostics import Watcher
from bpkit.diagnostics.script import Target, Watching, run

ROOT = Path(__file__).parents[2]

HEAD = """
import sys, torch
from torch import nn
torch.manual_seed(0)
x = torch.randn(64, 4)
y = x[:, :1]
mse = nn.functional.mse_loss
def mlp(*sizes, act=nn.Tanh):
    return nn.Sequential(*[l for a, b in zip(sizes, sizes[1:]) for l in (nn.Linear(a, b), act())][:-1])
"""
LOOP = """
for _ in range(12):
    optimizer.zero_grad()
    loss = mse(model(x), y)
    loss.backward()
    optimizer.step()
"""
PLAIN = "model = mlp(4, 8, 1)\noptimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n"


class Losses:
    """What every watcher was given, by step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.given: list[tuple[int, float]] = []
        original = Watcher.loss

        def loss(watcher: Watcher, value: Any) -> None:
            self.given.append((watcher.step, float(value)))
            original(watcher, value)

        monkeypatch.setattr(Watcher, "loss", loss)


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> Losses:
    return Losses(monkeypatch)


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Watching]:
    """Runs a script's text in this process; the globals of the script that it names are in `kept`."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(sys, "argv", ["bpkit"])
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])

    def runs(text: str, *arguments: str, code: int = 0, logs: bool = False) -> Watching:
        script = tmp_path / "train.py"
        script.write_text(HEAD + text)
        watching = Watching(tmp_path / "logs" if logs else None)
        with watching:
            assert run(Target(str(script)), arguments) == code
        return watching

    return runs


def names(watching: Watching) -> list[tuple[str, int]]:
    return [(each.name, each.steps) for each in watching.watched]


def test_a_plain_loop(watched, losses, capsys):
    watching = watched(PLAIN + LOOP + "print(*[loss.item()])")
    assert names(watching) == [("model", 12)]
    assert watching.watched[0].summary == "healthy: nothing found in 12 steps"
    assert [step for step, _ in losses.given] == list(range(1, 13))
    assert losses.given[-1][1] == pytest.approx(float(capsys.readouterr().out), rel=1e-6)


def test_the_numbers_of_the_training_stay_as_they_are(watched, capsys):
    text = HEAD + PLAIN + LOOP + "print(sum(p.double().sum().item() for p in model.parameters()).hex())"
    exec(compile(text, "train.py", "exec"), {"__name__": "__main__"})
    alone = capsys.readouterr().out
    watched(PLAIN + LOOP + "print(sum(p.double().sum().item() for p in model.parameters()).hex())")
    assert capsys.readouterr().out == alone


def test_what_is_wrong_is_found(watched):
    watching = watched(
        "model = mlp(4, *[16] * 12, 1, act=nn.Sigmoid)\n"
        "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)" + LOOP.replace("12", "60")
    )
    assert "vanishing" in [each.kind for each in watching.watched[0].findings]


CLASSES = """
import argparse
class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.body = mlp(4, width, width)
        self.head = nn.Linear(width, 1)
        self.unused = nn.Linear(2, 2).requires_grad_(False)
    def forward(self, x):
        return self.head(self.body(x).tanh())
def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--width", type=int)
    parser.add_argument("data")
    args = parser.parse_args()
    assert args.data == "-x" and sys.argv[0].endswith("train.py") and __name__ == "__main__"
    model = Net(args.width)
    with torch.no_grad():
        model(x)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad])
    criterion = nn.MSELoss()
    for step in range(12):
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()
if __name__ == "__main__":
    main()
"""


def test_a_class_with_a_main_and_arguments(watched):
    assert names(watched(CLASSES, "--width", "8", "--", "-x")) == [("Net", 12)]


def test_workers_that_are_forked_watch_nothing(watched):
    watching = watched(
        PLAIN
        + """
from torch.utils.data import DataLoader, TensorDataset
for inputs, target in DataLoader(TensorDataset(x, y), batch_size=16, num_workers=2):
    optimizer.zero_grad()
    mse(model(inputs), target).backward()
    optimizer.step()
"""
    )
    assert names(watching) == [("model", 4)]


def test_gan_is_two_models_with_their_losses(watched, losses, tmp_path):
    watching = watched(
        """
class Generator(nn.Sequential): ...
class Discriminator(nn.Sequential): ...
G, D = Generator(mlp(2, 8, 4)), Discriminator(mlp(4, 8, 1))
optG, optD = torch.optim.Adam(G.parameters()), torch.optim.Adam(D.parameters())
bce = nn.functional.binary_cross_entropy_with_logits
expected = open("EXPECTED", "w")
for _ in range(8):
    D.zero_grad()
    real = bce(D(x), torch.ones(64, 1))
    real.backward()
    fake = G(torch.randn(64, 2))
    made = bce(D(fake.detach()), torch.zeros(64, 1))
    made.backward()
    optD.step()
    G.zero_grad()
    fooled = bce(D(fake), torch.ones(64, 1))
    fooled.backward()
    optG.step()
    print((real + made).item(), fooled.item(), file=expected)
expected.close()
""".replace("EXPECTED", str(tmp_path / "expected")),
        logs=True,
    )
    assert names(watching) == [("Discriminator", 8), ("Generator", 8)]
    assert [each.logdir for each in watching.watched] == [
        tmp_path / "logs" / name for name in ("Discriminator", "Generator")
    ]
    assert all(any(each.logdir.iterdir()) for each in watching.watched)
    expected = [float(each) for each in (tmp_path / "expected").read_text().split()]
    assert [value for _, value in losses.given] == pytest.approx(expected, rel=1e-6)


def test_accumulated_losses_are_added_up(watched, losses, capsys):
    watched(
        PLAIN
        + """
for _ in range(5):
    optimizer.zero_grad()
    whole = mse(model(x), y)
    for part in range(4):
        (mse(model(x[part::4]), y[part::4]) / 4).backward()
    optimizer.step()
    print(whole.item())
"""
    )
    whole = [float(each) for each in capsys.readouterr().out.split()]
    assert [step for step, _ in losses.given] == [1, 2, 3, 4, 5]
    assert [value for _, value in losses.given] == pytest.approx(whole, rel=1e-6)


def test_losses_are_without_the_scale_of_mixed_precision(watched, losses, capsys):
    watched(
        PLAIN
        + """
scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
for step in range(6):
    optimizer.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = mse(model(x).float(), y)
    scaled = scaler.scale(loss)
    (scaled if step < 3 else scaled / 2).backward()
    scaler.step(optimizer)
    scaler.update()
    print((loss if step < 3 else loss / 2).item())
"""
    )
    expected = [float(each) for each in capsys.readouterr().out.split()]
    assert [value for _, value in losses.given] == pytest.approx(expected, rel=1e-6)


def test_lbfgs_runs_the_model_inside_its_step(watched, losses, capsys):
    watching = watched(
        """
model = mlp(4, 8, 1)
optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4)
for _ in range(5):
    def closure():
        global loss
        optimizer.zero_grad()
        loss = mse(model(x), y)
        loss.backward()
        return loss
    optimizer.step(closure)
    print(loss.item())
"""
    )
    assert names(watching) == [("model", 5)]
    expected = [float(each) for each in capsys.readouterr().out.split()]
    assert [value for _, value in losses.given][-3:] == pytest.approx(expected[-3:], rel=1e-6)


def test_a_model_of_which_only_parts_are_called(watched):
    watching = watched(
        """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features, self.classifier = mlp(4, 8, 8), nn.Linear(8, 1)
model = Net()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(6):
    optimizer.zero_grad()
    mse(model.classifier(model.features(x)), y).backward()
    optimizer.step()
"""
    )
    assert names(watching) == [("Net", 6)]


def test_parts_that_no_module_holds_together_are_one_group(watched):
    watching = watched(
        """
encoder, decoder = mlp(4, 8), mlp(8, 1)
optimizer = torch.optim.SGD([*encoder.parameters(), *decoder.parameters()], lr=0.1)
for _ in range(6):
    optimizer.zero_grad()
    mse(decoder(encoder(x)), y).backward()
    optimizer.step()
"""
    )
    assert [each.steps for each in watching.watched] == [6]


def test_a_part_that_is_called_first_gives_way_to_the_whole(watched):
    watching = watched(
        PLAIN.replace("mlp(4, 8, 1)", "nn.Sequential(mlp(4, 8), mlp(8, 1))")
        + """
for step in range(8):
    optimizer.zero_grad()
    out = model(x) if step else model[0](x)[:, :1]
    mse(out, y).backward()
    optimizer.step()
assert True
"""
    )
    assert names(watching) == [("model", 8)]


def test_models_trained_one_after_the_other_each_have_a_verdict(watched, losses):
    watching = watched(
        """
def fit():
    model = mlp(4, 8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(30):
        optimizer.zero_grad()
        mse(model(x), y).backward()
        optimizer.step()
for _ in range(3):
    fit()
"""
    )
    assert [each.name for each in watching.watched] == ["model", "model-2", "model-3"]
    assert [each.steps for each in watching.watched] == [30, 30, 30]


def test_a_second_optimizer_that_takes_the_model_over(watched):
    watching = watched(
        PLAIN
        + LOOP
        + "tuning = torch.optim.Adam(model.parameters())"
        + LOOP.replace("12", "40").replace("optimizer", "tuning")
    )
    assert [each.name for each in watching.watched] == ["model", "model-2"]


def test_two_optimizers_of_one_model_are_one_watch(watched):
    watching = watched(
        PLAIN.replace("model.parameters()", "model[0].parameters()")
        + "other = torch.optim.Adam(model[2].parameters())"
        + LOOP.replace("optimizer.step()", "optimizer.step(); other.step()").replace("12", "50")
    )
    assert names(watching) == [("model", 50)]


@pytest.mark.parametrize(
    ("compiled", "times"),
    [
        ("model = torch.compile(net, backend=counter)", 1),
        ("model = net; net.compile(backend=counter)", 2),  # with the hook that looks for calls, and without
    ],
)
def test_a_compiled_model_is_found(watched, capsys, compiled, times):
    watching = watched(
        "from torch._dynamo.testing import CompileCounter\ncounter = CompileCounter()\nnet = mlp(4, 8, 1)\n"
        + compiled
        + "\noptimizer = torch.optim.SGD(net.parameters(), lr=0.1)"
        + LOOP
        + "print(counter.frame_count)"
    )
    torch._dynamo.reset()
    assert [each.steps for each in watching.watched] == [12]
    assert int(capsys.readouterr().out) <= times


def test_a_teacher_and_a_frozen_backbone_are_no_models(watched):
    watching = watched(
        """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone, self.head = mlp(4, 8).requires_grad_(False), nn.Linear(8, 1)
    def forward(self, x):
        return self.head(self.backbone(x))
model, teacher = Net(), mlp(4, 8, 1)
optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)
for _ in range(30):
    optimizer.zero_grad()
    mse(model(x), teacher(x).detach()).backward()
    optimizer.step()
"""
    )
    assert names(watching) == [("Net", 30)]


def test_everything_is_put_back_also_after_an_exception(watched, capsys):
    before = (torch.autograd.backward, GradScaler.scale)
    watching = watched(PLAIN + LOOP + "def fail():\n    raise ValueError('mine')\nfail()", code=1)
    assert (torch.autograd.backward, GradScaler.scale) == before
    assert not module._global_forward_pre_hooks
    assert not optimizer._global_optimizer_pre_hooks
    assert not optimizer._global_optimizer_post_hooks
    assert names(watching) == [("model", 12)]
    trace = capsys.readouterr().err
    assert trace.startswith("Traceback (most recent call last):\n  File ")
    assert "ValueError: mine" in trace
    assert "runpy" not in trace
    assert "bpkit" not in trace


def test_calls_of_modules_are_noted_no_longer_than_needed(watched):
    watched(PLAIN + LOOP + "from torch.nn.modules import module\nassert not module._global_forward_pre_hooks")


def as_a_user(where: Path, *arguments: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "bpkit", "watch", *arguments],
        cwd=where, env=environment, capture_output=True, text=True, timeout=120, **settings,
    )  # fmt: skip


def test_as_a_user_with_workers_and_an_exit_code(tmp_path):
    (tmp_path / "helper.py").write_text("EXIT = 3\n")
    (tmp_path / "train.py").write_text(
        HEAD
        + PLAIN
        + """
import multiprocessing
from helper import EXIT
from torch.utils.data import DataLoader, TensorDataset
class Data(TensorDataset):
    pass
if __name__ == "__main__":
    loader = DataLoader(Data(x, y), batch_size=16, num_workers=1, multiprocessing_context="spawn")
    for x, y in loader:
        mse(model(x), y).backward()
        optimizer.step()
    print("done")
    sys.exit(EXIT)
"""
    )
    ran = as_a_user(tmp_path, "--json", "train.py")
    assert ran.returncode == 3, ran.stderr
    assert ran.stderr.count("done") == 1
    report = json.loads(ran.stdout)
    assert report["exit_code"] == 3
    (model,) = report["models"]
    assert (model["steps"], model["model"], model["findings"]) == (4, "model", [])
    assert model["logdir"] == str(tmp_path / "runs" / "train-1")
    assert list((tmp_path / "runs" / "train-1").glob("events*"))


def test_ctrl_c_as_a_user(tmp_path):
    (tmp_path / "train.py").write_text(
        HEAD + PLAIN + "import os, signal\n" + LOOP + "os.kill(os.getpid(), signal.SIGINT)\n" + LOOP
    )
    ran = as_a_user(tmp_path, "train.py")
    assert ran.returncode == 128 + signal.SIGINT
    assert ran.stdout == ""
    lines = ran.stderr.splitlines()
    assert "KeyboardInterrupt" in lines
    assert lines[-2:] == ["healthy: nothing found in 12 steps", "logs  tensorboard --logdir runs/train-1"]


def test_a_module_that_trains_nothing(tmp_path):
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    (tmp_path / "package" / "prepare.py").write_text(
        "import sys; from . import __name__; print(sys.argv[1:])"
    )
    ran = as_a_user(tmp_path, "-m", "package.prepare", "--json", "-m")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "['--json', '-m']\n"
    assert ran.stderr == (
        "nothing watched: no torch optimizer has taken a step in the process of package.prepare\n"
    )
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian.py"], "no such file: trian.py; did you mean train.py?"),
        (["no/train.py"], "no such file: no/train.py, nor a directory no"),
        (["data.csv"], "data.csv is not a Python file"),
        (["."], ". is a directory without a __main__.py; name a script"),
        (["package.train"], "no such file: package.train; a module is run by `bpkit watch -m package.train`"),
        (["-m", "nowhere.train"], "no module named nowhere.train from"),
        (["-m", "train-it"], "'train-it' is no module's name"),
        (["--diagnostics", "vanish", "train.py"], "unknown diagnostic 'vanish': did you mean 'vanishing'?"),
        (["--logdir", "data.csv", "train.py"], "--logdir data.csv is a file, not a directory"),
        (["--budget", "0", "train.py"], "'--budget': 0.0 is not in the range 0<x<=1"),
        (["--nonsense", "train.py"], "No such option"),
        ([], "Missing argument 'SCRIPT'"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text("raise AssertionError('run')")
    (tmp_path / "data.csv").write_text("1,2\n3,4,\nmean of\n")
    assert main(["watch", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("bpkit: error: ")
    assert message in error
    assert error.count("\n") == 1
