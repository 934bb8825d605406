"""The guide for authors: every hook and every field, described, typed and called by somebody."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import bpkit
from bpkit import cli
from bpkit.core.errors import BpkitError
from bpkit.plugins import guide, hookspecs
from bpkit.plugins.catalog import KINDS
from bpkit.plugins.manager import HOOKS

FIELDS = [(kind, field) for kind in guide.CLASSES for field in guide.own_fields(kind)]


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_in_it_with_its_arguments(hook: str) -> None:
    (line,) = [line for line in guide.guide().splitlines() if line.startswith(f"- `{hook}(")]
    assert all(argument in line for argument in HOOKS[hook].arguments)


@pytest.mark.parametrize(("kind", "field"), FIELDS, ids=[f"{k.__name__}.{f.name}" for k, f in FIELDS])
def test_every_field_is_in_it_with_its_type_and_a_description(kind: type, field: Any) -> None:
    _, _, section = guide.guide().partition(f"### {kind.__name__}\n")
    (line,) = [
        line for line in section.split("\n### ")[0].splitlines() if line.startswith(f"- `{field.name}: ")
    ]
    assert str(field.type) in line
    assert len(line.split("`: ", 1)[1]) > 5


def test_every_description_is_of_a_field() -> None:
    for kind in guide.CLASSES:
        assert set(guide.described(kind)) == {field.name for field in guide.own_fields(kind)}


def test_the_command_prints_it_and_loads_no_plugin(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bpkit.commands.plugins.registry", None)
    assert cli.main(["plugins", "--hooks"]) == 0
    assert capsys.readouterr().out == guide.guide()


def listener(seen: dict[str, set[str]], hook: str) -> Callable[..., Any]:
    """An implementation that takes every argument of its hook and notes what it is called with."""
    arguments = ", ".join(HOOKS[hook].arguments)
    source = f"def {hook}({arguments}):\n    seen[{hook!r}] = set(locals())\n    return []"
    namespace: dict[str, Any] = {"seen": seen}
    exec(source, namespace)
    return bpkit.hookimpl(namespace[hook])


def test_every_hook_is_called_with_every_argument(tmp_path: Path) -> None:
    seen: dict[str, set[str]] = {}
    plugin = type("Everything", (), {hook: staticmethod(listener(seen, hook)) for hook in HOOKS})()
    data = (torch.randn(8, 2), torch.randn(8, 1))
    trainer = bpkit.Trainer(
        nn.Linear(2, 1), loss="mse", plugins=[plugin], logdir=tmp_path, progress=False, device="cpu"
    )
    trainer.fit(data, data, epochs=1)
    with pytest.raises(BpkitError, match="the loss is nan"):
        trainer.fit((data[0] / 0, data[1]), epochs=2)
    assert {hook: set(HOOKS[hook].arguments) for hook in HOOKS} == seen


def test_each_kind_of_spec_has_its_hook() -> None:
    assert [f"bpkit_{kind}" for kind in KINDS] == list(hookspecs.PROVIDING)
