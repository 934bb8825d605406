"""The registry: specs go in through the hooks, catalogs and listeners come out.

Nothing is registered by being imported. The built-ins take the same way in as anybody's plugin, and
come first; the others follow in the order of their distribution's name and their own, whatever order
they were installed in.
"""

from __future__ import annotations

import reprlib
import threading
from collections.abc import Iterable
from dataclasses import replace
from pathlib import PurePath
from typing import Any

from bpkit.core.errors import BpkitError, unknown_name
from bpkit.core.spec import (
    DiagnosticSpec,
    LayerSpec,
    LossSpec,
    OptimizerSpec,
    RecipeSpec,
    RegularizerSpec,
    RuleSpec,
    Spec,
)
from bpkit.plugins import sources
from bpkit.plugins.catalog import KINDS, Catalog, PluginInfo
from bpkit.plugins.hookspecs import EVENTS
from bpkit.plugins.manager import Implementation, PluginError, describe, implementations
from bpkit.plugins.sources import Options, Source


class Registry:
    """Catalogs by kind, who listens to the training events, and the plugins that brought them.

    Attributes:
        plugins: every plugin there is, in order, also those blocked or broken.
    """

    def __init__(self, *, trace: bool = False) -> None:
        self.plugins: tuple[PluginInfo, ...] = ()
        self._trace = trace
        self._objects: dict[str, object] = {}
        self._catalogs: dict[str, Catalog[Any]] = {kind: Catalog(kind) for kind in KINDS}
        self._listeners: dict[str, tuple[Implementation, ...]] = dict.fromkeys(EVENTS, ())

    @property
    def layers(self) -> Catalog[LayerSpec]:
        """Layers by name."""
        return self._catalogs["layers"]

    @property
    def losses(self) -> Catalog[LossSpec]:
        """Losses by name."""
        return self._catalogs["losses"]

    @property
    def optimizers(self) -> Catalog[OptimizerSpec]:
        """Optimizers by name."""
        return self._catalogs["optimizers"]

    @property
    def regularizers(self) -> Catalog[RegularizerSpec]:
        """Regularizers by name."""
        return self._catalogs["regularizers"]

    @property
    def diagnostics(self) -> Catalog[DiagnosticSpec]:
        """Diagnostics by name."""
        return self._catalogs["diagnostics"]

    @property
    def recipes(self) -> Catalog[RecipeSpec]:
        """Recipes by name."""
        return self._catalogs["recipes"]

    @property
    def rules(self) -> Catalog[RuleSpec]:
        """Rules by name."""
        return self._catalogs["rules"]

    def listeners(self, hook: str) -> tuple[Implementation, ...]:
        """Who implements the training event `hook`, in order; call each with all its arguments."""
        if hook not in self._listeners:
            raise unknown_name("training event", hook, self._listeners)
        return self._listeners[hook]

    def register(self, plugin: object, name: str, version: str = "") -> PluginInfo:
        """Take in what `plugin` brings, all of it or nothing.

        Args:
            plugin: a module or an object with `@bpkit.hookimpl` functions.
            name: unique among the plugins of this registry.
            version: for errors; else the plugin's `__version__`, if it has one.

        Raises:
            PluginError: as `implementations` says; a name that is taken, or the same object again; a
                spec of another type than its hook's, or of a name that is taken; an exception in a hook.
        """
        info = PluginInfo(name, version or str(getattr(plugin, "__version__", "")))
        self._refuse_again(plugin, info)
        found = implementations(plugin, str(info), trace=self._trace)
        given = {kind: _specs(found[f"bpkit_{kind}"], kind) for kind in KINDS if f"bpkit_{kind}" in found}
        events = {hook: found[hook] for hook in EVENTS if hook in found}
        provides = {kind: tuple(spec.name for spec in specs) for kind, specs in given.items()}
        info = replace(info, provides={**provides, "events": tuple(events)} if events else provides)
        added = {kind: self._catalogs[kind].with_specs(specs, info) for kind, specs in given.items()}
        # Nothing below this line raises: what fails, fails before anything has changed.
        self._catalogs.update(added)
        for hook, implementation in events.items():
            self._listeners[hook] += (implementation,)
        self._objects[name] = plugin
        self.plugins += (info,)
        return info

    def load(self, options: Options, plugins: Iterable[Source]) -> None:
        """Register the `plugins` that `options` let in, and those asked for that are not among them.

        One that is broken is noted in `plugins` and left out.

        Raises:
            BpkitError: an unknown name in `options`; a broken plugin that they ask for.
        """
        plugins = tuple(plugins)
        known = [source.name for source in plugins]
        options.check(known)
        for source in plugins:
            reason = options.why_blocked(source)
            if reason:
                self.plugins += (PluginInfo(source.name, source.version, status="blocked", error=reason),)
            else:
                self._load(source, asked=source.name in options.asked)
        for name in options.ask:
            source = sources.named(name, known)
            if source.name not in self._objects:
                self._load(source, asked=True)

    def extended(self, *plugins: object) -> Registry:
        """A registry with more plugins: objects, or names of entry points, modules and Python files.

        A name that is loaded already is left as it is.

        Raises:
            BpkitError: a plugin that is unknown, broken or refused; this registry stays as it is.
        """
        other = Registry(trace=self._trace)
        other.plugins = self.plugins
        other._objects, other._catalogs = dict(self._objects), dict(self._catalogs)
        other._listeners = dict(self._listeners)
        for plugin in plugins:
            if not isinstance(plugin, (str, PurePath)):
                other.register(plugin, getattr(plugin, "__name__", type(plugin).__name__))
            elif str(plugin) not in other._objects:
                source = sources.named(str(plugin), other._objects)
                if source.name not in other._objects:
                    other.plugins = tuple(info for info in other.plugins if info.name != source.name)
                    other._load(source, asked=True)
        return other

    def _load(self, source: Source, *, asked: bool) -> None:
        try:
            self.register(source.load(), source.name, source.version)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a stranger's module may do anything on import, exit included
            if source.built_in or (asked and isinstance(error, BpkitError)):
                raise
            info = PluginInfo(source.name, source.version, status="broken")
            if asked:
                raise PluginError(info, describe(error)) from error
            reason = error.reason if isinstance(error, PluginError) else describe(error)
            self.plugins += (replace(info, error=reason),)

    def _refuse_again(self, plugin: object, info: PluginInfo) -> None:
        for name, registered in self._objects.items():
            if registered is plugin:
                raise PluginError(info, f"is already registered, as {name!r}")
        if info.name in self._objects:
            raise PluginError(info, "a plugin of that name is already registered; give one another __name__")


class _Process:
    """The registry of this process, loaded by whichever thread asks first."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._loading = False
        self._registry: Registry | None = None

    def registry(self) -> Registry:
        if self._registry is None:
            with self._lock:
                if self._loading:  # by this very thread, or the lock would hold it
                    raise BpkitError("plugins are being loaded: a plugin cannot use bpkit's names on import")
                if self._registry is None:
                    self._registry = self._load()
        return self._registry

    def _load(self) -> Registry:
        options = Options.from_environment()
        loaded = Registry(trace=options.trace)
        self._loading = True
        try:
            loaded.load(options, (*sources.built_in(), *sources.installed()))
        finally:
            self._loading = False
        return loaded


_process = _Process()


def registry() -> Registry:
    """The registry of this process: built-ins and entry points, loaded on first use.

    Raises:
        BpkitError: an unknown name in the options (`Options`), or a broken plugin that they ask for.
    """
    return _process.registry()


def _specs(implementation: Implementation, kind: str) -> list[Spec]:
    """What a providing hook gives, checked to be specs of its kind."""
    plugin, hook, wanted = implementation.plugin, implementation.hook, KINDS[kind]
    given = implementation()
    if not isinstance(given, Iterable) or isinstance(given, str):
        raise PluginError(plugin, f"{hook} must give a list of {wanted.__name__}s, not {_brief(given)}")
    try:
        specs = list(given)
    except (Exception, SystemExit) as error:  # a generator's body runs here
        raise PluginError(plugin, f"{hook} raised {describe(error)}") from error
    for spec in specs:
        if not isinstance(spec, wanted):
            raise PluginError(plugin, f"{hook} must give {wanted.__name__}s, not {_brief(spec)}")
    return specs


def _brief(value: object) -> str:
    return f"{type(value).__name__} {value.name!r}" if isinstance(value, Spec) else reprlib.repr(value)
