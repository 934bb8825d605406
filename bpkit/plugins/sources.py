"""Where plugins come from, and which of them are let in."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from bpkit.core.errors import BpkitError, unknown_name
from bpkit.plugins import files

GROUP = "bpkit"  # of entry points

# Imported by name, and registered as every plugin is: this package stands below them.
BUILT_IN = (
    "bpkit.layers",
    "bpkit.losses",
    "bpkit.optim",
    "bpkit.regularizers",
    "bpkit.diagnostics",
    "bpkit.train",
)


@dataclass(frozen=True)
class Source:
    """A plugin that can be loaded.

    Attributes:
        load: imports it and gives the module or object.
        built_in: part of bpkit; a fault in it is a bug, and is not isolated.
    """

    name: str
    version: str
    load: Callable[[], object]
    built_in: bool = False


@dataclass(frozen=True)
class Options:
    """Which plugins are let in.

    Attributes:
        allow: if given, these entry points alone (`BPKIT_PLUGINS`); each has to load.
        block: names to leave out (`-p no:NAME`, `BPKIT_BLOCK`).
        ask: what has to load (`-p NAME`, `BPKIT_ASK`): entry points, importable modules, Python files.
        autoload: load entry points that nobody asked for (`BPKIT_AUTOLOAD=0` does not).
        trace: print every hook call to stderr (`--trace-hooks`, `BPKIT_TRACE=1`).
    """

    allow: tuple[str, ...] = ()
    block: tuple[str, ...] = ()
    ask: tuple[str, ...] = ()
    autoload: bool = True
    trace: bool = False

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Options:
        """As the variables say (an empty one says nothing); worker processes inherit them."""

        def names(variable: str) -> tuple[str, ...]:
            return tuple(name.strip() for name in environment.get(variable, "").split(",") if name.strip())

        def switch(variable: str, default: str) -> bool:
            value = environment.get(variable) or default
            if value not in ("0", "1"):
                raise BpkitError(f"{variable}={value}: must be 0 or 1")
            return value == "1"

        return cls(
            allow=names("BPKIT_PLUGINS"),
            block=names("BPKIT_BLOCK"),
            ask=names("BPKIT_ASK"),
            autoload=switch("BPKIT_AUTOLOAD", "1"),
            trace=switch("BPKIT_TRACE", "0"),
        )

    @property
    def asked(self) -> frozenset[str]:
        """Names that have to load."""
        return frozenset((*self.allow, *self.ask))

    def check(self, known: Iterable[str]) -> None:
        """Raise `BpkitError` for a name to allow or block that nobody has, or a contradiction."""
        known = tuple(known)
        for name in (*self.allow, *self.block):
            if name not in known:
                raise unknown_name("plugin", name, known)
        for name in self.block:
            if name in self.asked:
                raise BpkitError(f"plugin {name}: both asked for and blocked; take one away")

    def why_blocked(self, source: Source) -> str:
        """Why `source` is left out, or nothing when it is let in."""
        if source.name in self.block:
            return f"-p no:{source.name}"
        if source.built_in or source.name in self.asked:
            return ""
        if self.allow:
            return "not in BPKIT_PLUGINS"
        return "" if self.autoload else "BPKIT_AUTOLOAD=0"


def built_in(names: Iterable[str] = BUILT_IN) -> list[Source]:
    """The plugin modules of bpkit's own packages."""
    from bpkit import __version__

    return [
        Source(name, __version__, partial(importlib.import_module, f"{name}.plugin"), True) for name in names
    ]


def installed() -> list[Source]:
    """Entry points, by distribution and name, whatever order they were installed in."""
    found = []
    try:
        points = list(importlib.metadata.entry_points(group=GROUP))
    except Exception:  # one garbled entry_points.txt takes the others along: read them one by one
        points = []
        for each in importlib.metadata.distributions():
            try:
                points += each.entry_points.select(group=GROUP)
            except Exception as error:
                if f"[{GROUP}]" in (each.read_text("entry_points.txt") or ""):
                    broken = Source(each.name, each.version, partial(_garbled, error))
                    found.append((each.name.lower(), broken))
    for point in points:
        distribution, version = _origin(point)
        found.append((distribution.lower(), Source(point.name, version, partial(_point, point))))
    return [source for _, source in sorted(found, key=lambda each: (each[0], each[1].name))]


def named(name: str, known: Iterable[str] = ()) -> Source:
    """The entry point called `name`, or else the file or module; `known` are further names to suggest."""
    points = {source.name: source for source in installed()}
    if name in points:
        return points[name]
    if files.is_path(name):
        path = files.absolute(name)
        return Source(path, "", partial(files.load, path))
    return Source(name, "", partial(_import, name, (*known, *points)))


def _garbled(error: Exception) -> object:
    raise BpkitError(f"its entry_points.txt cannot be read: {error}")


def _point(point: importlib.metadata.EntryPoint) -> object:
    if point.pattern.match(point.value) is None:
        raise BpkitError(f"its entry point is {point.value!r}, which is neither module nor module:object")
    return point.load()


def _import(name: str, known: Iterable[str]) -> object:
    try:
        module = importlib.import_module(name)
        if getattr(module, "__file__", None) is None and hasattr(module, "__path__"):
            raise unknown_name("plugin", name, dict.fromkeys(known))  # a directory that happens to be here
        return module
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise unknown_name("plugin", name, dict.fromkeys(known)) from None
        raise


def _origin(point: importlib.metadata.EntryPoint) -> tuple[str, str]:
    """Name and version of its distribution, as far as that has its metadata in order."""
    try:
        return (point.dist.name or "", point.dist.version or "") if point.dist else ("", "")
    except Exception:  # a METADATA file that is missing or garbled raises various things
        return "", ""
