"""All of a plugin or nothing: what goes in through the hooks, and what comes out by name."""

from __future__ import annotations

import sys
import threading
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from bpkit.core.errors import BpkitError
from bpkit.core.spec import LayerSpec, LossSpec, RecipeSpec
from bpkit.plugins import PluginError, PluginInfo, Registry, hookimpl, hookspecs, registry
from bpkit.plugins.catalog import KINDS
from bpkit.plugins.sources import Source

module = sys.modules[Registry.__module__]


class Theirs:
    """Provides recipes by `names` (or whatever `given` is), and listens."""

    __version__ = "1.2"

    def __init__(self, *names: str, given: Any = None) -> None:
        self.given = [RecipeSpec(name=name, toml="") for name in names] if given is None else given
        self.seen: list[Any] = []

    @hookimpl
    def bpkit_recipes(self) -> Iterable[RecipeSpec]:
        return self.given() if callable(self.given) else self.given

    @hookimpl
    def bpkit_batch(self, target: Any) -> None:
        self.seen.append(target)


class Quiet:
    @hookimpl
    def bpkit_losses(self) -> list[LossSpec]:
        return []


def state(registry: Registry) -> tuple[Any, ...]:
    """All that a registration can change, as seen from outside."""
    catalogs = [(kind, getattr(registry, kind).names()) for kind in KINDS]
    return registry.plugins, catalogs, [registry.listeners(hook) for hook in hookspecs.EVENTS]


def test_specs_come_out_by_name_and_events_are_heard_in_order() -> None:
    first, second, registry = Theirs("b", "a"), Theirs("c"), Registry()
    info = registry.register(first, "first", "3.0")
    registry.register(second, "second")
    assert info == PluginInfo("first", "3.0", {"recipes": ("b", "a"), "events": ("bpkit_batch",)})
    assert [str(each) for each in registry.plugins] == ["first 3.0", "second 1.2"]
    assert registry.recipes.names() == ("b", "a", "c")
    assert registry.recipes.owner("c") == registry.plugins[1]
    for listener in registry.listeners("bpkit_batch"):
        listener(trainer=None, inputs=None, target=5)
    assert (first.seen, second.seen) == ([5], [5])
    assert [each.plugin for each in registry.listeners("bpkit_batch")] == ["first 3.0", "second 1.2"]
    assert registry.listeners("bpkit_fit_end") == ()


def test_every_kind_of_spec_has_its_hook_and_its_catalog() -> None:
    assert tuple(f"bpkit_{kind}" for kind in KINDS) == hookspecs.PROVIDING
    assert [getattr(Registry(), kind).kind for kind in KINDS] == list(KINDS)


def test_an_unknown_event_is_an_error_with_the_nearest() -> None:
    with pytest.raises(BpkitError, match="unknown training event 'bpkit_bacth': did you mean 'bpkit_batch'"):
        Registry().listeners("bpkit_bacth")


def raises() -> list[RecipeSpec]:
    raise ValueError("no\nluck")


def yields_then_raises() -> Iterator[RecipeSpec]:
    yield RecipeSpec(name="good", toml="")
    raise OSError("gone")


LOSS = LayerSpec(
    name="Mine", module=object, reference=None, samples=tuple, saves="", saved_bytes=lambda *_: 0
)  # type: ignore[arg-type]

REFUSALS: dict[str, tuple[Callable[[Theirs], tuple[object, str]], str]] = {
    "a name that is taken": (
        lambda first: (Theirs("new"), "first"),
        "plugin first 1.2: a plugin of that name is already registered; give one another __name__",
    ),
    "the same object": (
        lambda first: (first, "second"),
        "plugin second 1.2: is already registered, as 'first'",
    ),
    "a spec that is taken": (
        lambda first: (Theirs("new", "a"), "second"),
        "plugin second 1.2: recipe 'a' is already registered by first 1.2",
    ),
    "another type of spec": (
        lambda first: (Theirs(given=[RecipeSpec(name="new", toml=""), LOSS]), "second"),
        "plugin second 1.2: bpkit_recipes must give RecipeSpecs, not LayerSpec 'Mine'",
    ),
    "no spec": (
        lambda first: (Theirs(given=["new"]), "second"),
        "plugin second 1.2: bpkit_recipes must give RecipeSpecs, not 'new'",
    ),
    "one spec, not a list": (
        lambda first: (Theirs(given=RecipeSpec(name="new", toml="")), "second"),
        "plugin second 1.2: bpkit_recipes must give a list of RecipeSpecs, not RecipeSpec 'new'",
    ),
    "a string": (
        lambda first: (Theirs(given="new"), "second"),
        "plugin second 1.2: bpkit_recipes must give a list of RecipeSpecs, not 'new'",
    ),
    "nothing": (
        lambda first: (Theirs(given=lambda: None), "second"),
        "plugin second 1.2: bpkit_recipes must give a list of RecipeSpecs, not None",
    ),
    "an exception": (
        lambda first: (Theirs(given=raises), "second"),
        "plugin second 1.2: bpkit_recipes raised ValueError: no luck",
    ),
    "an exception half-way": (
        lambda first: (Theirs(given=yields_then_raises), "second"),
        "plugin second 1.2: bpkit_recipes raised OSError: gone",
    ),
    "no plugin at all": (lambda first: (object(), "second"), "plugin second: implements no hook; hooks are "),
}


@pytest.mark.parametrize(("make", "text"), REFUSALS.values(), ids=REFUSALS)
def test_what_is_refused_leaves_nothing_behind(
    make: Callable[[Theirs], tuple[object, str]], text: str
) -> None:
    first, registry = Theirs("a"), Registry()
    registry.register(first, "first")
    plugin, name = make(first)
    before = state(registry)
    for refuse in (
        lambda: registry.register(plugin, name),
        lambda: registry.extended(Quiet(), named(plugin, name)),
    ):
        with pytest.raises(PluginError) as caught:
            refuse()
        assert str(caught.value).startswith(text)
        assert state(registry) == before
    registry.register(Theirs("new", "good"), "second")  # nothing of the refused one is in the way
    assert registry.recipes.names() == ("a", "new", "good")


def named(plugin: object, name: str) -> object:
    if hasattr(plugin, "__dict__"):
        plugin.__dict__["__name__"] = name
        return plugin
    return types.SimpleNamespace(__name__=name)


# --- extended --------------------------------------------------------------------------------------------


def test_an_extended_registry_has_more_and_leaves_the_first_as_it_was() -> None:
    registry = Registry()
    registry.register(Theirs("a"), "first")
    before = state(registry)
    mine = types.ModuleType("mine")
    mine.__dict__.update(__version__="0.3", bpkit_losses=Quiet().bpkit_losses)
    extended = registry.extended(Theirs("b"), mine)
    assert [str(each) for each in extended.plugins] == ["first 1.2", "Theirs 1.2", "mine 0.3"]
    assert extended.recipes.names() == ("a", "b")
    assert len(extended.listeners("bpkit_batch")) == 2
    assert state(registry) == before


def test_two_objects_of_one_class_need_a_name_each() -> None:
    with pytest.raises(PluginError, match=r"plugin Theirs 1\.2: a plugin of that name is already"):
        Registry().extended(Theirs("a"), Theirs("b"))


def test_a_plugin_that_is_loaded_already_may_be_named_again() -> None:
    registry = Registry()
    registry.register(Theirs("a"), "first")
    assert state(registry.extended("first")) == state(registry)


def test_a_class_is_refused_by_its_name() -> None:
    with pytest.raises(PluginError, match="plugin Quiet: Quiet is a class; register an instance of it"):
        Registry().extended(Quiet)


def test_tracing_is_handed_down(capsys: pytest.CaptureFixture[str]) -> None:
    Registry(trace=True).extended(Theirs("a"))
    assert capsys.readouterr().err.startswith("bpkit_recipes  Theirs 1.2  ")


# --- the registry of the process ---------------------------------------------------------------------------


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A fresh process whose one built-in notes how often it was loaded."""
    count: list[int] = []

    def load() -> object:
        count.append(1)
        return Theirs("a")

    monkeypatch.setattr(module, "_process", module._Process())
    monkeypatch.setattr(module.sources, "built_in", lambda: [Source("ours", "1", load, built_in=True)])
    monkeypatch.setattr(module.sources, "installed", list)
    return count


def test_it_is_loaded_once_whichever_thread_asks_first(loaded: list[int]) -> None:
    gate, found = threading.Barrier(8), []

    def ask() -> None:
        gate.wait()
        found.append(registry())

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loaded) == 1
    assert len(set(map(id, found))) == 1
    assert registry() is found[0]


def test_a_plugin_that_asks_for_it_while_loading_is_told(
    loaded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.sources, "installed", lambda: [Source("eager", "1", registry)])
    assert registry().plugins[1].error == (
        "BpkitError: plugins are being loaded: a plugin cannot use bpkit's names on import"
    )


def test_a_failed_load_can_be_tried_again(loaded: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BPKIT_BLOCK", "our")
    with pytest.raises(BpkitError, match="unknown plugin 'our': did you mean 'ours'"):
        registry()
    monkeypatch.delenv("BPKIT_BLOCK")
    assert registry().recipes.names() == ("a",)
