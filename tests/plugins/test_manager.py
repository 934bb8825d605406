"""What a plugin may look like, and how its hooks are called."""

from __future__ import annotations

import logging
import pickle
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pluggy
import pytest

from bpkit.plugins.hookspecs import hookimpl, hookspec
from bpkit.plugins.manager import HOOKS, Implementation, PluginError, describe, implementations, specified


def plugin(*functions: Callable[..., Any], **attributes: Any) -> types.ModuleType:
    module = types.ModuleType("theirs")
    for function in functions:
        setattr(module, function.__name__, function)
    vars(module).update(attributes)
    return module


class Listener:
    """A plugin that is an object: hooks that want `self`, one that does not."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    @hookimpl
    def bpkit_batch(self, target: Any) -> None:
        self.seen.append(target)

    @staticmethod
    @hookimpl
    def bpkit_fit_end() -> str:
        return "static"

    @classmethod
    @hookimpl
    def bpkit_fit_start(cls) -> str:
        return cls.__name__


def test_an_objects_hooks_take_the_arguments_they_name_and_come_in_the_hooks_order() -> None:
    listener = Listener()
    found = implementations(listener, "theirs")
    assert list(found) == ["bpkit_fit_start", "bpkit_batch", "bpkit_fit_end"]
    found["bpkit_batch"](trainer=None, inputs=1, target=2)
    assert listener.seen == [2]
    assert found["bpkit_fit_end"](trainer=None) == "static"
    assert found["bpkit_fit_start"](trainer=None) == "Listener"


def test_a_modules_hooks_are_found_under_another_name_too() -> None:
    @hookimpl(specname="bpkit_layers")
    def mine() -> list[Any]:
        return []

    assert list(implementations(plugin(mine), "theirs")) == ["bpkit_layers"]


# --- refusals: each a plugin, and what is said of it -------------------------------------------------


@hookimpl
def bpkit_fit_start() -> None: ...


@hookimpl
def bpkit_layres() -> list[Any]:
    return []


@hookimpl
def bpkit_qqq() -> None: ...


def bpkit_layers() -> list[Any]:
    return []


@hookimpl(specname="bpkit_fit_start")
def again() -> None: ...


@hookimpl(specname="bpkit_bacth")
def misnamed() -> None: ...


@hookimpl
def bpkit_batch(trainer: Any, batch: Any) -> None: ...


@hookimpl
def bpkit_losses(extra: Any) -> list[Any]:
    return []


@hookimpl
def bpkit_after_forward(loss: Any = None) -> None: ...


@hookimpl
def bpkit_after_step(trainer: Any, /) -> None: ...


@hookimpl
def bpkit_before_step(**everything: Any) -> None: ...


@hookimpl
def bpkit_evaluate_end() -> Iterator[None]:
    yield


@hookimpl
async def bpkit_checkpoint() -> None: ...


@hookimpl(wrapper=True)
def bpkit_fit_end() -> Iterator[None]:
    yield


@hookimpl(hookwrapper=True)
def bpkit_nonfinite() -> Iterator[None]:
    yield


@hookimpl(tryfirst=True)
def bpkit_after_backward() -> None: ...


@hookimpl(trylast=True)
def bpkit_rules() -> list[Any]:
    return []


class WithProperty:
    @property
    def bpkit_recipes(self) -> Any:
        raise AssertionError("a property of a plugin was run")


REFUSALS = {
    "a class": (Listener, "Listener is a class; register an instance of it"),
    "misspelt": (plugin(bpkit_layres), "bpkit_layres is no hook; did you mean bpkit_layers?"),
    "nothing like it": (
        plugin(bpkit_qqq),
        "bpkit_qqq is no hook; hooks are bpkit_layers, bpkit_losses, ",
    ),
    "misspelt specname": (plugin(misnamed), "bpkit_bacth is no hook; did you mean bpkit_batch?"),
    "undecorated": (plugin(bpkit_layers), "bpkit_layers is not decorated; put @bpkit.hookimpl on it"),
    "not a function": (plugin(bpkit_layers=[]), "bpkit_layers is not a function"),
    "a property": (WithProperty(), "bpkit_recipes is not a function"),
    "unknown attribute": (plugin(bpkit_versoin="1"), "bpkit_versoin is no hook"),
    "twice": (
        plugin(bpkit_fit_start, again),
        "bpkit_fit_start is implemented twice; bpkit_fit_start is the second",
    ),
    "unknown argument": (
        plugin(bpkit_batch),
        "bpkit_batch, argument 'batch': the hook has no such argument; it has trainer, inputs, target",
    ),
    "argument of a hook without": (
        plugin(bpkit_losses),
        "argument 'extra': the hook has no such argument; it has none",
    ),
    "default": (
        plugin(bpkit_after_forward),
        "bpkit_after_forward, argument 'loss': has a default, which would never be used; take it off",
    ),
    "positional-only": (
        plugin(bpkit_after_step),
        "argument 'trainer': is positional-only; hooks are called by keyword",
    ),
    "any arguments": (
        plugin(bpkit_before_step),
        "argument 'everything': the hook has no such argument; it has trainer",
    ),
    "generator": (
        plugin(bpkit_evaluate_end),
        "bpkit_evaluate_end is async or yields; calling it would not run it",
    ),
    "coroutine": (plugin(bpkit_checkpoint), "bpkit_checkpoint is async or yields"),
    "wrapper": (plugin(bpkit_fit_end), "bpkit_fit_end is a wrapper; hooks of bpkit cannot be wrapped"),
    "old wrapper": (plugin(bpkit_nonfinite), "bpkit_nonfinite is a wrapper"),
    "tryfirst": (
        plugin(bpkit_after_backward),
        "bpkit_after_backward has tryfirst; hooks run in the order of plugins",
    ),
    "trylast": (plugin(bpkit_rules), "bpkit_rules has trylast"),
    "empty": (plugin(), "implements no hook; hooks are bpkit_layers"),
}


@pytest.mark.parametrize(("refused", "reason"), REFUSALS.values(), ids=REFUSALS)
def test_refused_with_the_reason_and_the_right_name(refused: object, reason: str) -> None:
    with pytest.raises(PluginError) as caught:
        implementations(refused, "theirs 1.2")
    assert str(caught.value).startswith("plugin theirs 1.2: ")
    assert reason in caught.value.reason
    assert "\n" not in str(caught.value)


def test_a_module_named_like_a_hook_is_not_taken_for_one() -> None:
    assert list(implementations(plugin(bpkit_fit_start, bpkit_theirs=types), "theirs")) == ["bpkit_fit_start"]


def test_an_optional_hook_may_be_one_that_this_version_does_not_have() -> None:
    @hookimpl(optionalhook=True)
    def bpkit_hook_of_tomorrow(anything: Any) -> None: ...

    assert list(implementations(plugin(bpkit_fit_start, bpkit_hook_of_tomorrow), "t")) == ["bpkit_fit_start"]


def test_a_generator_may_provide_specs() -> None:
    @hookimpl
    def bpkit_recipes() -> Iterator[Any]:
        yield from ()

    assert list(implementations(plugin(bpkit_recipes), "theirs")) == ["bpkit_recipes"]


# --- deprecation ---------------------------------------------------------------------------------------


class Tomorrow:
    @hookspec(warn_on_impl=DeprecationWarning("use bpkit_new"))
    def bpkit_old(self) -> None: ...

    @hookspec(warn_on_impl_args={"loss": DeprecationWarning("use trainer.loss")})
    def bpkit_new(self, trainer: Any, loss: Any) -> None: ...


def test_a_deprecated_hook_or_argument_is_told_to_the_plugin_at_its_own_line() -> None:
    @hookimpl
    def bpkit_old() -> None: ...

    @hookimpl
    def bpkit_new(trainer: Any, loss: Any) -> None: ...

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        implementations(plugin(bpkit_old, bpkit_new), "theirs 1.0", hooks=specified(Tomorrow))
    assert sorted(str(each.message) for each in said) == [
        "plugin theirs 1.0: bpkit_new, argument 'loss' is deprecated: use trainer.loss",
        "plugin theirs 1.0: bpkit_old is deprecated: use bpkit_new",
    ]
    assert {each.category for each in said} == {DeprecationWarning}
    lines = {bpkit_old.__code__.co_firstlineno, bpkit_new.__code__.co_firstlineno}
    assert {(each.filename, each.lineno) for each in said} == {(__file__, line) for line in lines}


def test_a_plugin_that_takes_nothing_deprecated_is_not_warned() -> None:
    @hookimpl
    def bpkit_new(trainer: Any) -> None: ...

    assert implementations(plugin(bpkit_new), "theirs", hooks=specified(Tomorrow))  # warnings are errors


# --- calling -------------------------------------------------------------------------------------------


def implementation(function: Callable[..., Any], *arguments: str, **fields: Any) -> Implementation:
    return Implementation("theirs 1.2", "bpkit_batch", function, arguments, **fields)


def test_an_exception_names_the_plugin_and_its_version_and_is_kept_as_the_cause() -> None:
    def fails(target: Any) -> None:
        raise ValueError(f"bad\n  {target}")

    with pytest.raises(
        PluginError, match=r"^plugin theirs 1\.2: bpkit_batch raised ValueError: bad 7$"
    ) as caught:
        implementation(fails, "target")(trainer=None, inputs=None, target=7)
    assert isinstance(caught.value.__cause__, ValueError)
    again = pickle.loads(pickle.dumps(caught.value))  # worker processes send it home
    assert (str(again), again.reason) == (str(caught.value), caught.value.reason)


def test_ctrl_c_in_a_hook_is_no_error_of_the_plugin() -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        implementation(interrupted)()


def clock(*readings: float) -> Callable[[], float]:
    return iter(readings).__next__


@pytest.mark.parametrize(
    ("seconds", "said"), [(10.0, []), (10.5, ["plugin theirs 1.2: bpkit_batch took 10 s"])]
)
def test_a_hook_that_takes_more_than_ten_seconds_is_named(
    seconds: float, said: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="bpkit")
    implementation(lambda: None, clock=clock(100.0, 100.0 + seconds))()
    assert caplog.messages == said


def test_a_slow_hook_that_raises_is_named_too(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(PluginError):
        implementation(lambda: 1 / 0, clock=clock(0.0, 60.0))()
    assert caplog.messages == ["plugin theirs 1.2: bpkit_batch took 60 s"]


def test_a_trace_prints_each_call_with_its_plugin_and_time(capsys: pytest.CaptureFixture[str]) -> None:
    traced = implementation(lambda: "given", trace=True, clock=clock(0.0, 0.0015))
    assert traced() == "given"
    assert capsys.readouterr() == ("", "bpkit_batch  theirs 1.2  1.50 ms\n")
    replace(traced, trace=False, clock=clock(0.0, 0.0))()
    assert capsys.readouterr() == ("", "")


def test_an_argument_that_the_caller_forgot_is_not_blamed_on_the_plugin() -> None:
    with pytest.raises(KeyError, match="target"):
        implementation(lambda target: None, "target")(trainer=None)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("a\n b"), "ValueError: a b"),
        (SystemExit(3), "SystemExit: 3"),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_an_exception_on_one_line(error: BaseException, text: str) -> None:
    assert describe(error) == text


def test_hooks_are_read_as_pluggy_reads_them() -> None:
    assert HOOKS["bpkit_batch"].arguments == ("trainer", "inputs", "target")
    assert HOOKS["bpkit_layers"].arguments == ()
    assert isinstance(hookimpl, pluggy.HookimplMarker)
