"""Strict where pluggy is lenient: what a plugin may look like, and how its hooks are called.

pluggy registers a misspelt hook and never calls it, skips an undecorated one in silence, and leaves
an argument with a default unfilled. Each of these is refused here, before anything is registered,
in one line that names the plugin, the reason and the nearest right name.
"""

from __future__ import annotations

import inspect
import logging
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pluggy

from bpkit.core.errors import BpkitError, nearest
from bpkit.plugins import hookspecs

logger = logging.getLogger("bpkit")

SLOW_SECONDS = 10.0  # a hook that takes longer is named in the log: somebody is waiting for it


class PluginError(BpkitError):
    """A plugin that cannot be registered, or a hook of one that raised."""


@dataclass(frozen=True)
class Implementation:
    """One plugin's function for one hook, called with the arguments that it takes.

    Attributes:
        plugin: name and version, for errors.
        hook: name of the hook.
        function: what the plugin wrote.
        arguments: the hook's arguments that it takes.
        trace: print each call to stderr.
    """

    plugin: str
    hook: str
    function: Callable[..., Any]
    arguments: tuple[str, ...]
    trace: bool = False

    def __call__(self, **arguments: Any) -> Any:
        """Call it; whatever it raises comes out as a `PluginError` that names the plugin."""
        start = time.monotonic()
        try:
            return self.function(**{name: arguments[name] for name in self.arguments})
        except Exception as error:
            raise PluginError(f"plugin {self.plugin}: {self.hook} raised {describe(error)}") from error
        finally:
            seconds = time.monotonic() - start
            if seconds > SLOW_SECONDS:
                logger.warning("plugin %s: %s took %.0f s", self.plugin, self.hook, seconds)
            if self.trace:
                print(f"{self.hook}  {self.plugin}  {seconds * 1e3:.2f} ms", file=sys.stderr)


def implementations(plugin: object, name: str, *, trace: bool = False) -> dict[str, Implementation]:
    """The hooks that `plugin` implements, by name, after every check.

    Raises:
        PluginError: a class instead of an instance; a `bpkit_*` name that is no hook or is not
            decorated; a hook wrapper; an argument that the hook does not have, or has a default.
    """
    if inspect.isclass(plugin):
        raise PluginError(f"plugin {name}: {plugin.__name__} is a class; register an instance of it")
    found = {}
    for attribute, function in _candidates(plugin):
        options = getattr(function, "bpkit_impl", None)
        if options is None:
            raise PluginError(
                f"plugin {name}: {attribute} is not decorated; put @bpkit.hookimpl on it"
                if attribute in HOOKS
                else f"plugin {name}: {attribute} is no hook{_did_you_mean(attribute)}"
            )
        hook = options["specname"] or attribute
        if hook not in HOOKS:
            raise PluginError(f"plugin {name}: {hook} is no hook{_did_you_mean(hook)}")
        if options["wrapper"] or options["hookwrapper"]:
            raise PluginError(f"plugin {name}: {hook} is a wrapper; hooks of bpkit cannot be wrapped")
        found[hook] = Implementation(name, hook, function, _arguments(function, hook, name), trace)
    return found


def describe(error: BaseException) -> str:
    """`TypeError: its text`, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")


def _hooks() -> dict[str, tuple[str, ...]]:
    """Every hook with its arguments, as pluggy reads them from the specifications."""
    manager = pluggy.PluginManager("bpkit")
    manager.add_hookspecs(hookspecs)
    callers = {name: getattr(manager.hook, name) for name in (*hookspecs.PROVIDING, *hookspecs.EVENTS)}
    return {name: tuple(caller.spec.argnames) for name, caller in callers.items()}


HOOKS = _hooks()


def _candidates(plugin: object) -> Iterator[tuple[str, Any]]:
    """What `plugin` has that is named like a hook of bpkit, or marked as one."""
    for attribute in dir(plugin):
        value = inspect.getattr_static(plugin, attribute)
        named = attribute.startswith("bpkit_")
        if named or hasattr(getattr(value, "__func__", value), "bpkit_impl"):
            value = getattr(plugin, attribute)
            if callable(value):
                yield attribute, value


def _arguments(function: Callable[..., Any], hook: str, name: str) -> tuple[str, ...]:
    for parameter in inspect.signature(function).parameters.values():
        where = f"plugin {name}: {hook}, argument {parameter.name!r}"
        if parameter.name not in HOOKS[hook]:
            has = ", ".join(HOOKS[hook]) or "none"
            raise PluginError(f"{where}: the hook has no such argument; it has {has}")
        if parameter.default is not inspect.Parameter.empty:
            raise PluginError(f"{where}: has a default, which would never be filled; take it off")
    return tuple(inspect.signature(function).parameters)


def _did_you_mean(hook: str) -> str:
    close = nearest(hook, HOOKS)
    return f"; did you mean {close}?" if close else f"; hooks are {', '.join(HOOKS)}"
