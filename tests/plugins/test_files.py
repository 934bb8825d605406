"""A plugin that is one file: found by its path, in this process and in workers."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import bpkit
from bpkit import cli
from bpkit.core.errors import BpkitError
from bpkit.plugins import Options, PluginError, Registry, files, registry

BODY = """
    import torch
    import bpkit
    from bpkit.core.spec import nbytes, randn

    __version__ = "0.7"

    class Twice(torch.nn.Module):
        def forward(self, input):
            return 2 * input

    @bpkit.hookimpl
    def bpkit_layers():
        samples = lambda: [bpkit.Sample(inputs=(randn(4, 3),))]
        spec = dict(module=Twice, reference=None, samples=samples, saves="", saved_bytes=lambda *_: 0)
        return [bpkit.LayerSpec(name=f"Twice{number}", **spec) for number in range(4)]

    @bpkit.hookimpl
    def bpkit_fit_start(trainer):
        trainer.seen = __name__
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith(("mine", "json_", "my_")):
            del sys.modules[name]


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(textwrap.dedent(BODY))
    return path


def process(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    home = str(Path(bpkit.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": home, **variables}
    command = [sys.executable, "-m", "bpkit", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_it_is_named_by_its_whole_path_whatever_it_was_called_by(mine: Path) -> None:
    for given in ("mine.py", "./mine.py", "../" + mine.parent.name + "/mine.py", mine):
        info = registry().extended(given).plugins[-1]
        assert (info.name, info.version, info.status) == (str(mine), "0.7", "ok")
    both = registry().extended("mine.py", mine, str(mine))
    assert [info.name for info in both.plugins].count(str(mine)) == 1


def test_a_trainer_takes_a_path_a_module_or_an_object(mine: Path) -> None:
    module = files.load(str(mine))
    for given in ("mine.py", mine, module):
        trainer = bpkit.Trainer(
            nn.Linear(2, 2), plugins=[given], loss="mse", diagnostics=[], progress=False, device="cpu"
        )
        trainer.fit((torch.randn(4, 2), torch.randn(4, 2)), steps=1)
        assert trainer.seen == "mine"


def test_what_it_makes_can_be_pickled_and_it_is_run_once(mine: Path) -> None:
    made = registry().extended(mine).layers["Twice0"].module()
    assert type(pickle.loads(pickle.dumps(made))) is type(made)
    assert type(made) is registry().extended("mine.py").layers["Twice0"].module


def test_it_takes_no_other_modules_place(tmp_path: Path) -> None:
    path = tmp_path / "json.py"
    path.write_text(textwrap.dedent(BODY))
    module = files.load(str(path))
    assert sys.modules["json"] is json
    assert sys.modules[module.__name__] is module
    assert module.__name__.startswith("json_")


def test_a_name_that_is_no_identifier_will_do(tmp_path: Path) -> None:
    (tmp_path / "my plugin.v2.py").write_text(textwrap.dedent(BODY))
    assert "Twice0" in registry().extended("my plugin.v2.py").layers


MISTAKES = {
    "missing": ("gone.py", None, "no such file"),
    "missing directory": ("gone/mine.py", None, "no such file"),
    "directory": ("folder/", "", "is a directory; name a file in it"),
    "syntax": ("bad.py", "def f(:\n", "is not valid Python: line 1: invalid syntax"),
    "null bytes": ("bad.py", "\0\0", "is not"),
    "another suffix": ("notes.txt", "hello", "is not a Python file: its name does not end in .py"),
    "no hook": ("bad.py", "x = 1", "implements no hook; hooks are bpkit_layers"),
    "raises": ("bad.py", "raise ValueError('no\\n luck')", "ValueError: no luck"),
    "exits": ("bad.py", "raise SystemExit(3)", "SystemExit: 3"),
    "needs what is not there": ("bad.py", "import no_such", "ModuleNotFoundError: No module named 'no_such'"),
    "a typo": (
        "bad.py",
        "import bpkit\n@bpkit.hookimpl\ndef bpkit_layer(): return []",
        "bpkit_layer is no hook; did you mean bpkit_layers?",
    ),
}


@pytest.mark.parametrize(("name", "text", "reason"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_with_the_path(name: str, text: str | None, reason: str) -> None:
    if text is not None and name.endswith("/"):
        Path(name).mkdir()
    elif text is not None:
        Path(name).write_text(text)
    before = set(sys.modules)
    for ask in (lambda: registry().extended(name), lambda: Registry().load(Options(ask=(name,)), [])):
        with pytest.raises(PluginError) as caught:
            ask()
        assert str(caught.value).startswith(f"plugin {Path(name).resolve()}: {reason}")
        assert "\n" not in str(caught.value)
    if "hook" not in reason:  # it was imported, and is no plugin
        assert not {"bad", "notes"} & (set(sys.modules) - before)
    sys.modules.pop("bad", None)


def test_the_command_line_hands_the_whole_path_down(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bpkit.plugins.registry", Registry)  # loads nothing
    monkeypatch.setenv("BPKIT_ASK", "")
    assert cli.main(["-p", "mine.py", "plugins", "--hooks"]) == 0
    assert os.environ["BPKIT_ASK"] == str(mine)


def test_a_comma_in_the_path_is_refused() -> None:
    with pytest.raises(BpkitError, match="can have no comma"):
        cli._asked("a,b/mine.py")


def test_the_command_line_and_its_workers_have_it(mine: Path) -> None:
    names = [f"Twice{number}" for number in range(4)]
    done = process("-p", "mine.py", "verify", *names, "--only", "gradcheck", "--jobs", "2")
    assert (done.returncode, done.stderr) == (0, "")
    assert "4 targets, all proven" in done.stdout


@pytest.mark.parametrize("name", ["gone.py", "./", "bad.py"])
def test_a_mistake_on_the_command_line_is_one_line(name: str) -> None:
    Path("bad.py").write_text("def")
    done = process("-p", name, "plugins")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"bpkit: error: plugin {Path(name).resolve()}: ")
