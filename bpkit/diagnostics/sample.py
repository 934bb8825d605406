"""`Sample`: what is known of one step, with where every figure comes from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import sqrt
from typing import TYPE_CHECKING, Any

from bpkit.core.errors import BpkitError, unknown_name
from bpkit.core.finding import Finding, Severity
from bpkit.diagnostics.history import History
from bpkit.diagnostics.network import Network

if TYPE_CHECKING:
    from bpkit.diagnostics.instruments.instrument import Instrument


@dataclass(frozen=True)
class Provenance:
    """What a figure is of.

    Attributes:
        when: where in the step it is read: `"forward"`, `"backward"` (of every backward since the last
            step, together), `"accumulated"` (before clipping), `"before step"`, `"at step"` (what the
            optimizer used: after clipping), `"after step"`.
        scaled: still multiplied by the loss scale of mixed precision.
        reduced: the same on every rank; False is this rank's own.
    """

    when: str
    scaled: bool = False
    reduced: bool = True

    def __str__(self) -> str:
        scale = "scaled" if self.scaled else "unscaled"
        return f"{self.when}, {scale}, {'of all ranks' if self.reduced else 'of one rank'}"


@dataclass(frozen=True)
class Reading:
    """One figure a parameter or module, None where there is none (frozen, unused), and its provenance.

    Attributes:
        values: numbers, or tuples of them where the instrument has `columns`.
        provenance: what they are of.
        columns: names of the numbers of a figure.
    """

    values: tuple[Any, ...]
    provenance: Provenance
    columns: tuple[str, ...] = ()

    def column(self, name: str) -> tuple[float | None, ...]:
        """One number of each figure."""
        if name not in self.columns:
            raise unknown_name("column", name, self.columns)
        place = self.columns.index(name)
        return tuple(None if value is None else value[place] for value in self.values)


@dataclass(frozen=True)
class Sample:
    """One sampled step.

    Attributes:
        step: counted from 1; the step that has just been taken.
        network: the model's parameters and modules.
        readings: by instrument, what the diagnostics of this watch asked for.
        loss: the last value that was given, of step `loss_step` (a sample is taken where the step
            ends, before its own loss can be given), or None.
        validation: the last validation value that was given, or None.
        losses: steps and training losses since the last sample.
        validations: the same of validation losses.
        history: losses and how far the run has come, from all steps so far.
        order: indices of parameters, from the input to the output, as their gradients arrived.
        called: places of modules in the order of their first call; empty where none was listened to.
    """

    step: int
    network: Network
    readings: Mapping[type[Instrument], Reading]
    loss: float | None = None
    loss_step: int | None = None
    validation: float | None = None
    losses: tuple[tuple[int, float], ...] = ()
    validations: tuple[tuple[int, float], ...] = ()
    history: History = field(default_factory=History, repr=False)
    order: tuple[int, ...] = field(default=(), repr=False)
    called: tuple[int, ...] = field(default=(), repr=False)
    _norms: dict[Any, dict[str, float]] = field(default_factory=dict, repr=False, compare=False)

    def __getitem__(self, instrument: type[Instrument]) -> tuple[Any, ...]:
        """The values of one instrument, aligned with `network.parameters` or `network.modules`."""
        return self._reading(instrument).values

    def alike(self, *instruments: type[Instrument], one_rank: bool = False) -> None:
        """Whether figures may be set against one another; a diagnostic that does asks first.

        Args:
            instruments: whose figures these are.
            one_rank: a rank's own may stand for all ranks', as a mean over its cases does.

        Raises:
            BpkitError: some are scaled, or one rank's own, and others are not.
        """
        known = {each: self._reading(each).provenance for each in instruments}
        if len({(each.scaled, each.reduced or one_rank) for each in known.values()}) > 1:
            told = "; ".join(f"{each.__name__} is {provenance}" for each, provenance in known.items())
            raise BpkitError(f"figures that cannot be compared: {told}")

    def has(self, instrument: type[Instrument]) -> bool:
        """Whether this sample was measured with it: a light sample is with light ones alone."""
        return instrument in self.readings

    def column(self, instrument: type[Instrument], name: str) -> tuple[float | None, ...]:
        """One column of an instrument that has several."""
        return self._reading(instrument).column(name)

    def by_module(self, instrument: type[Instrument], name: str) -> dict[str, float]:
        """One column by module, in the order of the forward; modules without a value are left out."""
        values = self.column(instrument, name)
        places = self.called or range(len(self.network.modules))
        return {
            self.network.modules[place].name: value
            for place in places
            if (value := values[place]) is not None
        }

    @cached_property
    def layers(self) -> dict[str, list[int]]:
        """Indices of each layer's parameters; layers from the input to the output.

        The order is the reverse of that in which gradients arrived, and registration order until a
        backward has been seen.
        """
        layers: dict[str, list[int]] = {}
        for index in self.order or range(len(self.network.parameters)):
            layers.setdefault(self.network.parameters[index].layer, []).append(index)
        return layers

    def by_layer(self, instrument: type[Instrument], name: str | None = None) -> Mapping[str, float]:
        """Root of the sum of squares over each layer's parameters; layers without a value are left out."""
        key = instrument, name
        if key in self._norms:
            return self._norms[key]
        values = self[instrument] if name is None else self.column(instrument, name)
        norms = self._norms[key] = {}
        for layer, indices in self.layers.items():
            known = [value for index in indices if (value := values[index]) is not None]
            if known:
                norms[layer] = norm(known)
        return norms

    def total(self, instrument: type[Instrument]) -> float:
        """Root of the sum of squares over all parameters."""
        return norm([value for value in self[instrument] if value is not None])

    def finding(
        self,
        kind: str,
        layers: Iterable[str],
        evidence: Mapping[str, float],
        advice: str,
        *,
        severity: Severity = "warning",
        step: int | None = None,
    ) -> Finding:
        """A verdict as of this step; `step` is where it was seen first, if that was not now."""
        return Finding(
            kind=kind,
            severity=severity,
            layers=tuple(layers),
            step=self.step if step is None else step,
            last_step=self.step,
            evidence=evidence,
            advice=advice,
        )

    def _reading(self, instrument: type[Instrument]) -> Reading:
        if instrument not in self.readings:
            raise BpkitError(
                f"the sample has no {instrument.__name__}: name it in the `needs` of the diagnostic"
            )
        return self.readings[instrument]


def norm(values: list[float]) -> float:
    """Norm of norms: as exact as one pass over all elements, and more than one over their `cat`."""
    return sqrt(sum(value * value for value in values))
