"""`bpkit watch` as a user calls it, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bpkit.cli import main
from tests.commands.scripts import HEAD, LOOP, PLAIN

ROOT = Path(__file__).parents[2]


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
        (["nosuch.py"], "has a.py, b.py, c.py, d.py, e.py and 1 more"),
        (["empty/nosuch.py"], "empty has no Python file"),
        (["no/train.py"], "no such file: no/train.py, nor a directory no"),
        (["data.csv"], "data.csv is not a Python file"),
        (["."], ". is a directory without a __main__.py; name a script"),
        (["package.train"], "no such file: package.train; a module is run by `bpkit watch -m package.train`"),
        (["-m", "nowhere.train"], "no module named nowhere.train from"),
        (["-m", "train-it"], "'train-it' is no module's name"),
        (["--diagnostics", "vanish", "train.py"], "unknown diagnostic 'vanish': did you mean 'vanishing'?"),
        (["--logdir", "data.csv", "train.py"], "--logdir data.csv is a file, not a directory"),
        (["--budget", "0", "train.py"], "'--budget': 0.0 is not in the range 0<x<=1"),
        (
            ["--epochs", "3", "train.py"],
            "option '--epochs'. Options of the script come after it: bpkit watch train.py --epochs ...",
        ),
        ([], "Missing argument 'SCRIPT'"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for name in ("train.py", *(f"{letter}.py" for letter in "abcde")):
        (tmp_path / name).write_text("raise AssertionError('run')")
    (tmp_path / "data.csv").write_text("1,2\n3,4,\nmean of\n")
    assert main(["watch", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("bpkit: error: ")
    assert message in error
    assert error.count("\n") == 1
