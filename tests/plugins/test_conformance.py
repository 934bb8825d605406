"""Plugins that misbehave, each installed beside a good one: a line that names it, and the rest works."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import bpkit
from bpkit.plugins import Options, PluginError, Registry, hookspecs
from bpkit.plugins.manager import HOOKS
from bpkit.plugins.sources import built_in, installed

GOOD = """
    from bpkit import RecipeSpec, hookimpl
    @hookimpl
    def bpkit_recipes():
        return [RecipeSpec(name="good", toml="")]
"""
HEAD = "import time, bpkit, torch\nfrom bpkit import *\n@bpkit.hookimpl\n"

# What a plugin does at registration, and what is said of it.
BROKEN = {
    "raises at import": ("raise OSError('no disk')", "OSError: no disk"),
    "imports what is not there": ("import no_such", "ModuleNotFoundError: No module named 'no_such'"),
    "is no Python": ("def f(:", "SyntaxError: "),
    "asks for the registry while it loads": (
        "import bpkit.plugins\nbpkit.plugins.registry().layers['Linear'].saves\nraise ValueError('asked')",
        "ValueError: asked",
    ),
    "misspells a hook": (
        HEAD + "def bpkit_looses(): return []",
        "bpkit_looses is no hook; did you mean bpkit_losses?",
    ),
    "misspells an argument": (
        HEAD + "def bpkit_batch(trainer, target_): ...",
        "bpkit_batch, argument 'target_': the hook has no such argument; it has trainer, inputs, target",
    ),
    "forgets the decorator": ("def bpkit_rules(): return []", "bpkit_rules is not decorated"),
    "shadows a built-in's name": (
        HEAD + "def bpkit_recipes(): return [RecipeSpec(name='digits-mlp', toml='')]",
        "recipe 'digits-mlp' is already registered by bpkit.train ",
    ),
    "shadows a built-in's alias": (
        HEAD + "def bpkit_optimizers():\n"
        "    return [OptimizerSpec(name='SGD', optimizer=torch.optim.SGD, reference=None)]",
        "optimizer 'SGD' is already registered by bpkit.optim ",
    ),
    "is a second twin of a torch class": (
        HEAD + "def bpkit_layers():\n"
        "    return [LayerSpec(name='Fast', module=torch.nn.Linear, reference=torch.nn.Linear,\n"
        "                      samples=list, saves='', saved_bytes=lambda *_: 0)]",
        "'Fast' would be a second twin of torch's Linear, which bpkit.layers ",
    ),
    "brings one name twice": (
        HEAD + "def bpkit_recipes(): return [RecipeSpec(name='a', toml='')] * 2",
        "recipe 'a' is already registered by bad 0.3",
    ),
    "makes a spec of a wrong field": (
        HEAD + "def bpkit_recipes(): return [RecipeSpec(name='a', tml='')]",
        "bpkit_recipes raised TypeError: ",
    ),
    "makes a spec of a wrong type": (
        HEAD + "def bpkit_recipes(): return [RecipeSpec(name='a', toml=3)]",
        "bpkit_recipes raised TypeError: RecipeSpec('a'): toml must be a string, not 3",
    ),
    **{
        f"{hook} raises": (HEAD + f"def {hook}(): raise KeyError('k')", f"{hook} raised KeyError: 'k'")
        for hook in hookspecs.PROVIDING
    },
    **{
        f"{hook} returns the wrong type": (HEAD + f"def {hook}(): return {{'a': 1}}", f"{hook} must give ")
        for hook in hookspecs.PROVIDING
    },
    **{
        f"{hook} returns nothing": (HEAD + f"def {hook}(): pass", f"{hook} must give a list of ")
        for hook in hookspecs.PROVIDING
    },
}


@pytest.mark.parametrize(("body", "reason"), BROKEN.values(), ids=BROKEN)
def test_one_that_cannot_be_registered_is_a_line_and_the_rest_works(
    body: str, reason: str, install: Any
) -> None:
    install("a-bad", "bad", body, version="0.3")
    install("b-good", "good", GOOD)
    registry = Registry()
    registry.load(Options(), [*built_in(), *installed()])
    bad, good = registry.plugins[-2:]
    assert (bad.name, bad.version, bad.status, good.status) == ("bad", "0.3", "broken", "ok")
    assert bad.error.startswith(reason)
    assert "\n" not in bad.error
    assert "good" in registry.recipes
    assert registry.losses["mse"].name == "mse"
    asked = Registry()
    with pytest.raises(bpkit.BpkitError) as caught:
        asked.load(Options(ask=("bad",)), [*built_in(), *installed()])
    assert str(caught.value).startswith(f"plugin bad 0.3: {reason}")


def trainer(logdir: Path, *plugins: object) -> bpkit.Trainer:
    return bpkit.Trainer(
        nn.Linear(2, 1),
        loss="mse",
        plugins=plugins,
        diagnostics=[],
        logdir=logdir,
        progress=False,
        device="cpu",
    )


def listener(hook: str, body: str) -> Any:
    """A plugin, version 2.1, with one training event."""
    arguments = ", ".join(HOOKS[hook].arguments)
    namespace: dict[str, Any] = {}
    exec(f"def {hook}({arguments}): {body}", namespace)
    hooks = {hook: staticmethod(bpkit.hookimpl(namespace[hook])), "__version__": "2.1"}
    return type("Theirs", (), hooks)()


def run(hook: str, trainer: bpkit.Trainer) -> None:
    """A run in which that event happens."""
    inputs = torch.full((4, 2), float("nan")) if hook == "bpkit_nonfinite" else torch.randn(4, 2)
    data = (inputs, torch.randn(4, 1))
    trainer.fit(data, data, epochs=1)


@pytest.mark.parametrize("hook", hookspecs.EVENTS)
def test_an_event_that_raises_names_the_plugin_its_version_and_the_event(hook: str, tmp_path: Path) -> None:
    theirs = listener(hook, "raise ValueError('no\\n luck')")
    with pytest.raises(PluginError) as caught:
        run(hook, trainer(tmp_path / "a", theirs))
    assert str(caught.value) == f"plugin Theirs 2.1: {hook} raised ValueError: no luck"
    assert isinstance(caught.value.__cause__, ValueError)
    if hook != "bpkit_nonfinite":
        run(hook, trainer(tmp_path / "b"))  # without it, in the same process


@pytest.mark.parametrize("hook", ["bpkit_fit_start", "bpkit_after_step", "bpkit_fit_end"])
def test_an_event_that_takes_too_long_is_named_and_the_run_goes_on(
    hook: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("bpkit.plugins.manager.SLOW_SECONDS", -1.0)
    with caplog.at_level(logging.WARNING, "bpkit"):
        run(hook, trainer(tmp_path, listener(hook, "pass")))
    assert f"plugin Theirs 2.1: {hook} took 0 s" in [record.getMessage() for record in caplog.records]


def test_one_that_is_there_already_is_refused_by_name(tmp_path: Path) -> None:
    theirs = listener("bpkit_batch", "pass")
    with pytest.raises(PluginError, match=r"^plugin Theirs 2\.1: is already registered, as 'Theirs'$"):
        trainer(tmp_path, theirs, theirs)
