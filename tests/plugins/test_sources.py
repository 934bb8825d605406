"""Entry points: found, let in or left out, and isolated when they are broken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bpkit.core.errors import BpkitError
from bpkit.plugins import Options, Registry
from bpkit.plugins.sources import BUILT_IN, Source, built_in, installed

GOOD = """
    from bpkit import RecipeSpec, hookimpl
    @hookimpl
    def bpkit_recipes():
        return [RecipeSpec(name=__name__, toml="")]
"""
FAILS_ON_IMPORT = "raise ValueError('no\\n  luck')"

BROKEN = {
    "import": (FAILS_ON_IMPORT, "ValueError: no luck"),
    "missing module": ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
    "syntax": ("def", "SyntaxError: invalid syntax"),
    "exit": ("raise SystemExit(3)", "SystemExit: 3"),
    "not an Exception": ("class Panic(BaseException): ...\nraise Panic('rust')", "Panic: rust"),
    "hook": (
        "import bpkit\n@bpkit.hookimpl\ndef bpkit_layers(): raise KeyError('k')",
        "bpkit_layers raised KeyError: 'k'",
    ),
    "wrong spec": (
        "import bpkit\n@bpkit.hookimpl\ndef bpkit_layers(): return [3]",
        "bpkit_layers must give LayerSpecs, not 3",
    ),
    "misspelt": (
        "import bpkit\n@bpkit.hookimpl\ndef bpkit_layer(): return []",
        "bpkit_layer is no hook; did you mean bpkit_layers?",
    ),
    "exit in a hook": (
        "import bpkit\n@bpkit.hookimpl\ndef bpkit_layers(): raise SystemExit(7)",
        "bpkit_layers raised SystemExit: 7",
    ),
    "exit in a generator": (
        "import bpkit\n@bpkit.hookimpl\ndef bpkit_layers(): yield exit(7)",
        "bpkit_layers raised SystemExit: 7",
    ),
    "no hook": ("", "implements no hook; hooks are bpkit_layers"),
}


def load(**options: Any) -> Registry:
    registry = Registry()
    registry.load(Options(**options), installed())
    return registry


def status(registry: Registry) -> dict[str, str]:
    return {info.name: f"{info.status} {info.error}".rstrip() for info in registry.plugins}


@pytest.mark.parametrize(("body", "error"), BROKEN.values(), ids=BROKEN)
def test_a_broken_one_is_reported_and_the_others_load(body: str, error: str, install: Any) -> None:
    install("a-broken", "bad", body, version="0.1")
    install("b-good", "good", GOOD)
    bad, good = load().plugins
    assert (bad.name, bad.version, bad.status) == ("bad", "0.1", "broken")
    assert bad.error.startswith(error)
    assert "\n" not in bad.error
    assert (good.name, good.status) == ("good", "ok")


@pytest.mark.parametrize(("body", "error"), BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("asked", ["ask", "allow", "extended"])
def test_a_broken_one_that_was_asked_for_is_fatal(body: str, error: str, asked: str, install: Any) -> None:
    install("a-broken", "bad", body, version="0.1")
    with pytest.raises(BpkitError) as caught:
        load().extended("bad") if asked == "extended" else load(**{asked: ("bad",)})
    assert str(caught.value).startswith(f"plugin bad 0.1: {error}")


def test_ctrl_c_while_a_plugin_loads_is_not_taken_for_a_fault_of_it(install: Any) -> None:
    install("a", "bad", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        load()


def test_a_fault_in_a_built_in_is_a_bug_and_keeps_its_type() -> None:
    def fails() -> object:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Registry().load(Options(), [Source("bpkit.layers", "1", fails, built_in=True)])


def test_order_is_by_distribution_and_name_whatever_was_installed_first(install: Any) -> None:
    for distribution, point in [("zeta", "a"), ("Beta", "z"), ("Beta", "b"), ("alpha", "m")]:
        install(distribution, point, GOOD)
    assert [source.name for source in installed()] == ["m", "b", "z", "a"]


def test_a_name_that_two_distributions_claim_goes_to_the_first(install: Any) -> None:
    install("alpha", "same", GOOD, version="1.0")
    install("beta", "same", GOOD, version="2.0")
    first, second = load().plugins
    assert (first.version, first.status) == ("1.0", "ok")
    assert (second.version, second.status) == ("2.0", "broken")
    assert second.error.startswith("a plugin of that name is already registered")


def test_a_distribution_without_metadata_is_no_harm(install: Any) -> None:
    Path(install("alpha", "a", GOOD), "METADATA").unlink()
    assert [str(info) for info in load().plugins] == ["a"]


# --- what is let in -------------------------------------------------------------------------------------


LET_IN: list[tuple[dict[str, Any], dict[str, str]]] = [
    ({}, {"a": "ok", "b": "ok"}),
    ({"allow": ("b",)}, {"a": "blocked not in BPKIT_PLUGINS", "b": "ok"}),
    ({"allow": ("b",), "ask": ("a",)}, {"a": "ok", "b": "ok"}),
    ({"block": ("a",)}, {"a": "blocked -p no:a", "b": "ok"}),
    ({"autoload": False}, {"a": "blocked BPKIT_AUTOLOAD=0", "b": "blocked BPKIT_AUTOLOAD=0"}),
    ({"autoload": False, "ask": ("a",)}, {"a": "ok", "b": "blocked BPKIT_AUTOLOAD=0"}),
    ({"autoload": False, "allow": ("a",)}, {"a": "ok", "b": "blocked not in BPKIT_PLUGINS"}),
    ({"autoload": False, "block": ("a",)}, {"a": "blocked -p no:a", "b": "blocked BPKIT_AUTOLOAD=0"}),
]


@pytest.mark.parametrize(("options", "expected"), LET_IN)
def test_options_say_which_are_let_in(
    options: dict[str, Any], expected: dict[str, str], install: Any
) -> None:
    install("alpha", "a", GOOD)
    install("beta", "b", GOOD)
    registry = load(**options)
    assert status(registry) == expected
    assert len(registry.recipes) == list(expected.values()).count("ok")


def test_what_is_left_out_is_not_imported(install: Any) -> None:
    install("alpha", "a", FAILS_ON_IMPORT)
    assert status(load(block=("a",))) == {"a": "blocked -p no:a"}


def test_a_built_in_can_be_blocked_and_no_list_leaves_it_out() -> None:
    def fails() -> object:
        raise AssertionError("was loaded")

    source = Source("bpkit.layers", "1", fails, built_in=True)
    Registry().load(Options(block=("bpkit.layers",)), [source])
    assert Options(allow=("x",), autoload=False).why_blocked(source) == ""


UNKNOWN: list[tuple[dict[str, Any], str]] = [
    ({"allow": ("lino",)}, "unknown plugin 'lino': did you mean 'lion'?"),
    ({"block": ("lino",)}, "unknown plugin 'lino': did you mean 'lion'?"),
    ({"ask": ("lino",)}, "unknown plugin 'lino': did you mean 'lion'?"),
    ({"ask": ("qqq.sub",)}, "unknown plugin 'qqq.sub': there are: lion"),
    ({"ask": ("qqq",), "autoload": False}, "unknown plugin 'qqq': there are: lion"),
    ({"ask": ("lion",), "block": ("lion",)}, "plugin lion: both asked for and blocked; take one away"),
    ({"allow": ("lion",), "block": ("lion",)}, "plugin lion: both asked for and blocked; take one away"),
    ({"ask": (".lion",)}, "plugin .lion: TypeError: the 'package' argument is required"),
]


@pytest.mark.parametrize(("options", "text"), UNKNOWN)
def test_an_unknown_name_or_a_contradiction_is_an_error(
    options: dict[str, Any], text: str, install: Any
) -> None:
    install("alpha", "lion", GOOD)
    with pytest.raises(BpkitError) as caught:
        load(**options)
    assert str(caught.value).startswith(text)


def test_a_module_can_be_asked_for_by_its_name(install: Any) -> None:
    install("alpha", "a", GOOD)
    registry = load(autoload=False, ask=("module_of_alpha_a",))
    assert status(registry) == {"a": "blocked BPKIT_AUTOLOAD=0", "module_of_alpha_a": "ok"}


def test_a_module_that_lacks_something_else_is_not_called_unknown(install: Any) -> None:
    install("alpha", "a", "import module_o")  # a missing name that begins as the module's does
    with pytest.raises(
        BpkitError, match="plugin module_of_alpha_a: ModuleNotFoundError: No module named 'module_o'"
    ):
        Registry().extended("module_of_alpha_a")


def test_asking_lets_a_blocked_one_in_and_its_earlier_status_goes(install: Any) -> None:
    install("alpha", "a", GOOD)
    assert status(load(autoload=False).extended("a")) == {"a": "ok"}


# --- the environment ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "options"),
    [
        ({}, Options()),
        ({"BPKIT_PLUGINS": " a, b ,", "BPKIT_BLOCK": "c"}, Options(allow=("a", "b"), block=("c",))),
        ({"BPKIT_ASK": "a", "BPKIT_AUTOLOAD": "0"}, Options(ask=("a",), autoload=False)),
        ({"BPKIT_TRACE": "1", "BPKIT_AUTOLOAD": "1"}, Options(trace=True)),
        ({"BPKIT_PLUGINS": "", "BPKIT_AUTOLOAD": "", "BPKIT_TRACE": ""}, Options()),
    ],
)
def test_options_from_the_environment(environment: dict[str, str], options: Options) -> None:
    assert Options.from_environment(environment) == options


@pytest.mark.parametrize("variable", ["BPKIT_AUTOLOAD", "BPKIT_TRACE"])
def test_a_switch_is_0_or_1(variable: str) -> None:
    with pytest.raises(BpkitError, match=f"^{variable}=no: must be 0 or 1$"):
        Options.from_environment({variable: "no"})


def test_built_ins_are_modules_of_bpkit_loaded_by_name() -> None:
    source = built_in(["bpkit.layers"])[0]
    registry = Registry()
    registry.load(Options(), [source])
    assert registry.layers.owner("Linear").name == "bpkit.layers"
    assert [each.name for each in built_in()] == list(BUILT_IN)


def test_a_garbled_entry_points_file_is_that_plugins_fault_alone(install: Any) -> None:
    metadata = install("a-garbled", "bad", GOOD)
    (metadata / "entry_points.txt").write_text("[bpkit]\nno equals sign\n")
    install("b-good", "good", GOOD)
    bad, good = load().plugins
    assert (bad.name, bad.status, good.status) == ("a-garbled", "broken", "ok")
    assert "its entry_points.txt cannot be read" in bad.error


def test_an_entry_point_that_names_no_object_is_told(install: Any) -> None:
    metadata = install("a-odd", "bad", GOOD)
    (metadata / "entry_points.txt").write_text("[bpkit]\nbad = not a module:::\n")
    (bad,) = load().plugins
    assert "neither module nor module:object" in bad.error
