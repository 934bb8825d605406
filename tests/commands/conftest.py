"""Scripts, run in the process of the test."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bpkit.diagnostics.script import Target, Watching, run
from tests.commands.scripts import HEAD, Losses


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> Losses:
    return Losses(monkeypatch)


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Watching]:
    """Runs a script's text in this process, and returns what was watched of it."""
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
