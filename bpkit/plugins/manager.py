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
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pluggy

from bpkit.core.errors import BpkitError, nearest
from bpkit.plugins import hookspecs

logger = logging.getLogger("bpkit")

SLOW_SECONDS = 10.0  # a hook that takes longer is named in the log: somebody is waiting for it


class PluginError(BpkitError):
    """A plugin that cannot be registered, or a hook of one that raised.

    Attributes:
        plugin: its name and version.
        reason: what was wrong, without the plugin's name.
    """

    def __init__(self, plugin: object, reason: str) -> None:
        self.plugin, self.reason = str(plugin), reason
        super().__init__(self.plugin, reason)

    def __str__(self) -> str:
        return f"plugin {self.plugin}: {self.reason}"


@dataclass(frozen=True)
class Implementation:
    """One plugin's function for one hook, called with the arguments that it takes.

    Attributes:
        plugin: name and version, for errors.
        hook: name of the hook.
        function: what the plugin wrote.
        arguments: the hook's arguments that it takes.
        trace: print each call to stderr, with the time it took.
        clock: seconds, for measuring how long a call takes.
    """

    plugin: str
    hook: str
    function: Callable[..., Any]
    arguments: tuple[str, ...]
    trace: bool = False
    clock: Callable[[], float] = time.monotonic

    def __call__(self, **arguments: Any) -> Any:
        """Call it; an exception comes out as a `PluginError` that names the plugin, its cause kept."""
        taken = {name: arguments[name] for name in self.arguments}
        start = self.clock()
        try:
            return self.function(**taken)
        except (Exception, SystemExit) as error:
            raise PluginError(self.plugin, f"{self.hook} raised {describe(error)}") from error
        finally:
            seconds = self.clock() - start
            if seconds > SLOW_SECONDS:
                logger.warning("plugin %s: %s took %.0f s", self.plugin, self.hook, seconds)
            if self.trace:
                print(f"{self.hook}  {self.plugin}  {seconds * 1e3:.2f} ms", file=sys.stderr)


@dataclass(frozen=True)
class Hook:
    """A hook as `hookspecs` specifies it.

    Attributes:
        arguments: names that an implementation may take.
        deprecated: said to a plugin that implements it.
        deprecated_arguments: said, by argument, to a plugin that takes it.
    """

    arguments: tuple[str, ...]
    deprecated: Warning | type[Warning] | None = None
    deprecated_arguments: Mapping[str, Warning | type[Warning]] = field(default_factory=dict)


def specified(namespace: type | types.ModuleType) -> dict[str, Hook]:
    """The hooks that `@hookspec` functions of `namespace` specify, in its order, as pluggy reads them."""
    manager = pluggy.PluginManager("bpkit")
    manager.add_hookspecs(namespace)
    hooks = {}
    for name in vars(namespace):
        spec = getattr(getattr(manager.hook, name, None), "spec", None)
        if spec is not None:
            hooks[name] = Hook(tuple(spec.argnames), spec.warn_on_impl, spec.warn_on_impl_args or {})
    return hooks


HOOKS: Mapping[str, Hook] = types.MappingProxyType(specified(hookspecs))


def implementations(
    plugin: object, name: str, *, trace: bool = False, hooks: Mapping[str, Hook] = HOOKS
) -> dict[str, Implementation]:
    """The hooks that `plugin` implements, by name in the hooks' order, after every check.

    A function marked `optionalhook=True` may name a hook that this version of bpkit does not have.

    Raises:
        PluginError: a class instead of an instance; a `bpkit_*` name that is no hook, no function or
            not decorated; a hook implemented twice; a wrapper, or an order of its own; a body that
            calling would not run; an argument that the hook does not have, or has a default; no hook.
    """
    if inspect.isclass(plugin):
        raise PluginError(name, f"{plugin.__name__} is a class; register an instance of it")
    found: dict[str, Implementation] = {}
    for attribute, function in _candidates(plugin):
        options = getattr(function, "bpkit_impl", None)
        hook = (options and options["specname"]) or attribute
        if hook not in hooks:
            if options and options["optionalhook"]:
                continue
            raise PluginError(name, f"{hook} is no hook{_did_you_mean(hook, hooks)}")
        if not callable(function):
            raise PluginError(name, f"{attribute} is not a function")
        if options is None:
            raise PluginError(name, f"{attribute} is not decorated; put @bpkit.hookimpl on it")
        if hook in found:
            raise PluginError(name, f"{hook} is implemented twice; {attribute} is the second")
        _refuse_options(options, name, hook)
        _refuse_body_never_run(function, name, hook)
        arguments = _arguments(function, name, hook, hooks[hook])
        _warn_of_deprecation(function, name, hook, hooks[hook], arguments)
        found[hook] = Implementation(name, hook, function, arguments, trace)
    if not found:
        raise PluginError(name, f"implements no hook{_did_you_mean('', hooks)}")
    return {hook: found[hook] for hook in hooks if hook in found}


def describe(error: BaseException) -> str:
    """`TypeError: its text`, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")


def _candidates(plugin: object) -> Iterator[tuple[str, Any]]:
    """What `plugin` has that is named like a hook of bpkit (modules apart), or marked as one."""
    for attribute in dir(plugin):
        value = inspect.getattr_static(plugin, attribute)  # runs no property of a stranger's
        marked = hasattr(getattr(value, "__func__", value), "bpkit_impl")
        if marked or (attribute.startswith("bpkit_") and not inspect.ismodule(value)):
            is_property = isinstance(value, property)
            yield attribute, value if is_property else getattr(plugin, attribute)


def _refuse_options(options: Mapping[str, Any], name: str, hook: str) -> None:
    if options["wrapper"] or options["hookwrapper"]:
        raise PluginError(name, f"{hook} is a wrapper; hooks of bpkit cannot be wrapped")
    for option in ("tryfirst", "trylast"):
        if options[option]:
            raise PluginError(name, f"{hook} has {option}; hooks run in the order of plugins, take it off")


def _refuse_body_never_run(function: Callable[..., Any], name: str, hook: str) -> None:
    generates = inspect.isgeneratorfunction(function) and hook in hookspecs.EVENTS
    if generates or inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise PluginError(name, f"{hook} is async or yields; calling it would not run it")


def _arguments(function: Callable[..., Any], name: str, hook: str, spec: Hook) -> tuple[str, ...]:
    parameters = inspect.signature(function).parameters
    for parameter in parameters.values():
        where = f"{hook}, argument {parameter.name!r}"
        if parameter.name not in spec.arguments:
            has = ", ".join(spec.arguments) or "none"
            raise PluginError(name, f"{where}: the hook has no such argument; it has {has}")
        if parameter.default is not inspect.Parameter.empty:
            raise PluginError(name, f"{where}: has a default, which would never be used; take it off")
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            raise PluginError(name, f"{where}: is positional-only; hooks are called by keyword")
    return tuple(parameters)


def _warn_of_deprecation(
    function: Callable[..., Any], name: str, hook: str, spec: Hook, arguments: tuple[str, ...]
) -> None:
    """Warn, as from the plugin's own line, of a hook or argument that is to go."""
    about = {hook: spec.deprecated} if spec.deprecated else {}
    for argument in spec.deprecated_arguments.keys() & set(arguments):
        about[f"{hook}, argument {argument!r}"] = spec.deprecated_arguments[argument]
    for what, warning in about.items():
        text = f"plugin {name}: {what} is deprecated: {warning}"
        code = inspect.unwrap(function).__code__
        category = type(warning) if isinstance(warning, Warning) else warning
        warnings.warn_explicit(text, category, code.co_filename, code.co_firstlineno)


def _did_you_mean(name: str, hooks: Mapping[str, Hook]) -> str:
    stem = "bpkit_"  # all have it, so it says nothing about which is near
    close = nearest(name.removeprefix(stem), [hook.removeprefix(stem) for hook in hooks])
    return f"; did you mean {stem}{close}?" if close else f"; hooks are {', '.join(hooks)}"
