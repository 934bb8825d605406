"""What is registered, by kind and name, and where each thing came from.

Specs go in through the hooks, a `Registry` comes out; nothing is registered by being imported. The
built-ins take the same way in as anybody's plugin, and come first; the others follow in the order of
their distribution's name and their own, whatever order they were installed in.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from bpkit.core.errors import unknown_name
from bpkit.core.spec import (
    DiagnosticSpec,
    LayerSpec,
    LossSpec,
    ModuleSpec,
    OptimizerSpec,
    RecipeSpec,
    RegularizerSpec,
    RuleSpec,
    Spec,
)
from bpkit.plugins.manager import Implementation, PluginError, describe, implementations

# Loaded by name, through the registration that every plugin goes through: this file stands below them.
BUILT_IN = ("layers", "losses", "optim", "regularizers", "diagnostics", "train")

_KINDS: dict[str, type[Spec]] = {
    "layers": LayerSpec,
    "losses": LossSpec,
    "optimizers": OptimizerSpec,
    "regularizers": RegularizerSpec,
    "diagnostics": DiagnosticSpec,
    "recipes": RecipeSpec,
    "rules": RuleSpec,
}
_SINGULAR = {
    kind: kind[:-2] if kind == "losses" else kind[:-1] for kind in _KINDS
}  # for errors: "unknown loss"

S = TypeVar("S", bound=Spec)


@dataclass(frozen=True)
class PluginInfo:
    """A plugin as `bpkit plugins` shows it.

    Attributes:
        provides: names by kind (`{"layers": ("Linear", ...)}`); a training event by its hook's name.
        status: `"ok"`, `"blocked"` (left out on request) or `"broken"`.
        error: for a broken one, the exception's type and text, on one line.
    """

    name: str
    version: str
    provides: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    status: str = "ok"
    error: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.version}".rstrip()


class Catalog(Generic[S]):
    """The specs of one kind, by name or alias, in the order of registration."""

    def __init__(self, kind: str, entries: Iterable[tuple[S, PluginInfo]] = ()) -> None:
        self.kind = kind
        self._entries = {spec.name: (spec, owner) for spec, owner in entries}
        self._names = {
            name: spec.name for spec, _ in self._entries.values() for name in (*spec.aliases, spec.name)
        }

    def __getitem__(self, name: str) -> S:
        """The spec called `name`; raises `UnknownNameError` with the nearest name there is."""
        return self._entry(name)[0]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[S]:
        return (spec for spec, _ in self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    def names(self) -> tuple[str, ...]:
        """Every name, aliases apart."""
        return tuple(self._entries)

    def owner(self, name: str) -> PluginInfo:
        """The plugin that brought `name`."""
        return self._entry(name)[1]

    def with_specs(self, specs: Iterable[S], owner: PluginInfo) -> Catalog[S]:
        """A catalog that holds `specs` as well; raises `PluginError` where a name is taken."""
        taken = dict(self._names)
        entries = list(self._entries.values())
        for spec in specs:
            for name in dict.fromkeys((spec.name, *spec.aliases)):
                if name in taken:
                    holder = next((who for each, who in entries if each.name == taken[name]), owner)
                    raise PluginError(
                        f"plugin {owner}: {_SINGULAR[self.kind]} {name!r} is already registered by {holder}"
                    )
                taken[name] = spec.name
            self._refuse_second_twin(spec, entries, owner)
            entries.append((spec, owner))
        return Catalog(self.kind, entries)

    def _entry(self, name: str) -> tuple[S, PluginInfo]:
        if name not in self._names:
            raise unknown_name(_SINGULAR[self.kind], name, self._names)
        return self._entries[self._names[name]]

    @staticmethod
    def _refuse_second_twin(
        spec: Spec, entries: Iterable[tuple[Spec, PluginInfo]], owner: PluginInfo
    ) -> None:
        if not isinstance(spec, ModuleSpec) or spec.reference is None:
            return
        for other, holder in entries:
            if isinstance(other, ModuleSpec) and other.reference is spec.reference:
                raise PluginError(
                    f"plugin {owner}: {spec.name!r} would be a second twin of "
                    f"torch.nn.{spec.reference.__name__}, which {holder} has; register a RuleSpec instead"
                )


@dataclass(frozen=True)
class Options:
    """Which plugins are loaded.

    Attributes:
        allow: if given, these entry points alone (`BPKIT_PLUGINS`); each is asked for.
        block: names to leave out (`-p no:NAME`, `BPKIT_BLOCK`).
        ask: names that have to load (`-p NAME`, `BPKIT_ASK`): entry points or importable modules.
        autoload: look for entry points at all (`BPKIT_AUTOLOAD=0` does not).
        trace: print every hook call to stderr (`--trace-hooks`, `BPKIT_TRACE=1`).
    """

    allow: tuple[str, ...] | None = None
    block: tuple[str, ...] = ()
    ask: tuple[str, ...] = ()
    autoload: bool = True
    trace: bool = False

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Options:
        """As the variables say; worker processes inherit them."""

        def names(variable: str) -> tuple[str, ...]:
            return tuple(name.strip() for name in environment.get(variable, "").split(",") if name.strip())

        return cls(
            allow=names("BPKIT_PLUGINS") if "BPKIT_PLUGINS" in environment else None,
            block=names("BPKIT_BLOCK"),
            ask=names("BPKIT_ASK"),
            autoload=environment.get("BPKIT_AUTOLOAD", "1") != "0",
            trace=environment.get("BPKIT_TRACE", "0") == "1",
        )


class Registry:
    """Catalogs by kind, and the plugins they came from."""

    def __init__(self, *, trace: bool = False) -> None:
        self.plugins: tuple[PluginInfo, ...] = ()
        self.trace = trace
        self._catalogs: dict[str, Catalog[Any]] = {kind: Catalog(kind) for kind in _KINDS}
        self._implementations: tuple[Implementation, ...] = ()

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
        return tuple(each for each in self._implementations if each.hook == hook)

    def register(self, plugin: object, name: str, version: str = "") -> PluginInfo:
        """Take in what `plugin` brings, all of it or nothing.

        Raises:
            PluginError: as `implementations` says; a name that is taken; a spec of another type than
                its hook's; an exception in a hook.
        """
        info = PluginInfo(name, version)
        if any(each.name == name and each.status == "ok" for each in self.plugins):
            raise PluginError(f"plugin {info}: a plugin of that name is already registered")
        found = implementations(plugin, str(info), trace=self.trace)
        catalogs, provides = dict(self._catalogs), {}
        for hook, implementation in found.items():
            kind = hook.removeprefix("bpkit_")
            if kind in _KINDS:
                specs = _specs(implementation, kind)
                catalogs[kind] = catalogs[kind].with_specs(specs, info)
                provides[kind] = tuple(spec.name for spec in specs)
            else:
                provides[hook] = ()
        info = replace(info, provides=provides)
        for kind in provides.keys() & _KINDS.keys():  # the specs' owner knows what it provides
            catalogs[kind] = self._catalogs[kind].with_specs(
                [catalogs[kind][name] for name in provides[kind]], info
            )
        self._catalogs = catalogs
        self._implementations += tuple(each for hook, each in found.items() if hook not in _PROVIDING)
        self.plugins += (info,)
        return info

    def extended(self, *plugins: object) -> Registry:
        """A registry with more plugins: objects, or names of entry points and modules."""
        other = self._copy()
        for plugin in plugins:
            if isinstance(plugin, str):
                if not any(each.name == plugin and each.status == "ok" for each in other.plugins):
                    other.load_named(plugin)
            else:
                other.register(plugin, getattr(plugin, "__name__", type(plugin).__name__))
        return other

    def load_built_in(self) -> None:
        """Register what bpkit brings itself; an error there is a bug and is not caught."""
        from bpkit import __version__

        for name in BUILT_IN:
            self.register(importlib.import_module(f"bpkit.{name}.plugin"), f"bpkit.{name}", __version__)

    def load(self, options: Options) -> None:
        """Register the entry points that `options` let in; a broken one is noted and left out."""
        points = _entry_points() if options.autoload or options.allow else []
        known = [point.name for point in points]
        for name in (*(options.allow or ()), *options.block):
            if name not in known:
                raise unknown_name("plugin", name, known)
        asked = {*(options.allow or ()), *options.ask}
        for point in points:
            if point.name in options.block or (options.allow is not None and point.name not in asked):
                self.plugins += (PluginInfo(point.name, _version(point), status="blocked"),)
            else:
                self._load_entry_point(point, asked=point.name in asked)
        for name in options.ask:
            if name not in known:
                self.load_named(name)

    def load_named(self, name: str) -> None:
        """Register the entry point or importable module called `name`, or say why not."""
        points = {point.name: point for point in _entry_points()}
        if name in points:
            self._load_entry_point(points[name], asked=True)
            return
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name and name.startswith(error.name):
                raise unknown_name("plugin", name, [*points, *(each.name for each in self.plugins)]) from None
            raise PluginError(f"plugin {name}: {describe(error)}") from error
        except Exception as error:
            raise PluginError(f"plugin {name}: {describe(error)}") from error
        self.register(module, name)

    def _load_entry_point(self, point: importlib.metadata.EntryPoint, *, asked: bool) -> None:
        try:
            self.register(point.load(), point.name, _version(point))
        except (Exception, SystemExit) as error:  # whatever a stranger's module does on import
            if asked:
                if isinstance(error, PluginError):
                    raise
                raise PluginError(f"plugin {point.name} {_version(point)}: {describe(error)}") from error
            broken = PluginInfo(point.name, _version(point), status="broken", error=describe(error))
            self.plugins += (broken,)

    def _copy(self) -> Registry:
        other = Registry(trace=self.trace)
        other.plugins = self.plugins
        other._catalogs = dict(self._catalogs)
        other._implementations = self._implementations
        return other


@functools.cache
def registry() -> Registry:
    """The registry of this process: built-ins and entry points, loaded on first use."""
    options = Options.from_environment()
    loaded = Registry(trace=options.trace)
    loaded.load_built_in()
    loaded.load(options)
    return loaded


_PROVIDING = {f"bpkit_{kind}" for kind in _KINDS}


def _specs(implementation: Callable[..., Any], kind: str) -> list[Any]:
    """What a providing hook gives, checked to be specs of its kind."""
    plugin = getattr(implementation, "plugin", "")
    given = implementation()
    if not isinstance(given, Iterable):
        raise PluginError(f"plugin {plugin}: bpkit_{kind} returned {given!r}, not {_KINDS[kind].__name__}s")
    specs = list(given)
    for spec in specs:
        if not isinstance(spec, _KINDS[kind]):
            raise PluginError(f"plugin {plugin}: bpkit_{kind} gave {spec!r}, not a {_KINDS[kind].__name__}")
    return specs


def _entry_points() -> list[importlib.metadata.EntryPoint]:
    points = importlib.metadata.entry_points(group="bpkit")
    return sorted(points, key=lambda point: (point.dist.name.lower() if point.dist else "", point.name))


def _version(point: importlib.metadata.EntryPoint) -> str:
    return point.dist.version if point.dist else ""
