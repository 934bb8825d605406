"""`Sample`: what is known of one step, with where every figure comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import sqrt
from typing import TYPE_CHECKING

from bpkit.diagnostics.network import Network

if TYPE_CHECKING:
    from bpkit.diagnostics.instruments import Instrument


@dataclass(frozen=True)
class Provenance:
    """What a figure is of.

    Attributes:
        when: where in the step it is read: `"accumulated"` (before clipping), `"before step"`, `"at step"`
            (what the optimizer used: after clipping), `"after step"`.
        scaled: still multiplied by the loss scale of mixed precision.
        reduced: the same on every rank; False is this rank's own.
    """

    when: str
    scaled: bool = False
    reduced: bool = True


@dataclass(frozen=True)
class Reading:
    """One figure a parameter, None where there is none (frozen, unused), and its provenance."""

    values: tuple[float | None, ...]
    provenance: Provenance


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
    """

    step: int
    network: Network
    readings: Mapping[type[Instrument], Reading]
    loss: float | None = None
    loss_step: int | None = None
    validation: float | None = None
    order: tuple[int, ...] = field(default=(), repr=False)

    def __getitem__(self, instrument: type[Instrument]) -> tuple[float | None, ...]:
        """The values of one instrument, aligned with `network.parameters`."""
        return self.readings[instrument].values

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

    def by_layer(self, instrument: type[Instrument]) -> dict[str, float]:
        """Root of the sum of squares over each layer's parameters; layers without a value are left out."""
        values, norms = self[instrument], {}
        for layer, indices in self.layers.items():
            known = [value for index in indices if (value := values[index]) is not None]
            if known:
                norms[layer] = norm(known)
        return norms

    def total(self, instrument: type[Instrument]) -> float:
        """Root of the sum of squares over all parameters."""
        return norm([value for value in self[instrument] if value is not None])


def norm(values: list[float]) -> float:
    """Norm of norms: as exact as one pass over all elements, and more than one over their `cat`."""
    return sqrt(sum(value * value for value in values))
