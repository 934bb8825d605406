"""What is registered, by kind and name, and which plugin brought it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Generic, TypeVar

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
from bpkit.plugins.manager import PluginError

KINDS: Mapping[str, type[Spec]] = MappingProxyType(
    {
        "layers": LayerSpec,
        "losses": LossSpec,
        "optimizers": OptimizerSpec,
        "regularizers": RegularizerSpec,
        "diagnostics": DiagnosticSpec,
        "recipes": RecipeSpec,
        "rules": RuleSpec,
    }
)

S = TypeVar("S", bound=Spec)


@dataclass(frozen=True)
class PluginInfo:
    """A plugin as `bpkit plugins` shows it.

    Attributes:
        provides: names by kind (`{"layers": ("Linear", ...)}`), and the training events that it listens to
            under `"events"`.
        status: `"ok"`, `"blocked"` (left out on request) or `"broken"`.
        error: why it is not ok, on one line; where something raised, the exception's type and text.
    """

    name: str
    version: str = ""
    provides: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    status: str = "ok"
    error: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.version}".rstrip()


class Catalog(Generic[S]):
    """The specs of one kind, by name or alias, in the order of registration. It never changes."""

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
        """A catalog that holds `specs` as well.

        Raises:
            PluginError: a name or alias is taken, or torch's class has a twin already: whose, it says.
        """
        holders = {name: self.owner(name) for name in self._names}
        twins = {
            each.reference: holder
            for each, holder in self._entries.values()
            if isinstance(each, ModuleSpec) and each.reference is not None
        }
        entries = list(self._entries.values())
        for spec in specs:
            for name in dict.fromkeys((spec.name, *spec.aliases)):
                if name in holders:
                    taken = f"{self._singular} {name!r} is already registered by {holders[name]}"
                    raise PluginError(owner, taken)
                holders[name] = owner
            if isinstance(spec, ModuleSpec) and spec.reference is not None:
                if spec.reference in twins:
                    raise PluginError(
                        owner,
                        f"{spec.name!r} would be a second twin of torch's {spec.reference.__name__}, "
                        f"which {twins[spec.reference]} has; register a RuleSpec instead",
                    )
                twins[spec.reference] = owner
            entries.append((spec, owner))
        return Catalog(self.kind, entries)

    def _entry(self, name: str) -> tuple[S, PluginInfo]:
        if name not in self._names:
            raise unknown_name(self._singular, name, self._names)
        return self._entries[self._names[name]]

    @property
    def _singular(self) -> str:
        """The kind in an error: "unknown loss"."""
        return self.kind.removesuffix("es" if self.kind == "losses" else "s")
