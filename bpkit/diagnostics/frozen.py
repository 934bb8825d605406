"""Frozen: parameters that require no gradient, where that looks like a mistake.

A frozen backbone, embeddings or normalisations, and everything but the adapters, are frozen on purpose:
they are the front of the network, or most of it. A few layers that are frozen behind ones that train, a
head above all, are not; nor are a few at the front that the optimizer was given to train. A layer that
runs and to which no error comes back is behind nothing: it is a target's, or a teacher's. And where layers
begin to train as the run goes on, freezing is its schedule.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from bpkit.core.finding import Finding, Severity
from bpkit.diagnostics.diagnostic import Diagnostic
from bpkit.diagnostics.instruments import Activations, Deltas, Standing
from bpkit.diagnostics.log import rows
from bpkit.diagnostics.sample import Sample

SAMPLES = 3


class Frozen(Diagnostic):
    """Layers of which every matrix is frozen."""

    needs = (Standing, Activations)
    wants = (Deltas,)

    def __init__(self) -> None:
        self._samples = 0
        self._frozen: set[str] = set()
        self._scheduled = False
        self._called: set[str] = set()
        self._erring: set[str] = set()
        self._seen: Finding | None = None

    def observe(self, sample: Sample) -> Iterable[Finding]:
        """A finding from the third sample on: a warning where it looks like a mistake.

        Of information once layers that were frozen train.
        """
        self._samples += 1
        self._listen(sample)
        if self._samples < SAMPLES:
            return
        frozen, training, held = _layers(sample)
        self._scheduled |= not self._frozen.isdisjoint(training)
        self._frozen |= set(frozen)
        if not frozen or not training:
            yield from self._over(sample)
            return
        order = {name: place for place, name in enumerate(rows(sample))}
        first = min(order[layer] for layer in training)
        behind = [layer for layer in frozen if order[layer] > first and not self._is_target(layer)]
        few = len(frozen) < len(training)
        at_front = [layer for layer in frozen if layer in held and layer not in behind]
        mistaken = (behind or at_front) if few and not self._scheduled else []
        severity: Severity = "warning" if mistaken else "info"
        where = tuple(mistaken or frozen)
        self._seen = sample.finding(
            "frozen",
            where,
            {"layers_frozen": len(frozen), "layers_training": len(training)},
            (_ON_PURPOSE if not mistaken else _BEHIND if behind else _HELD).format(layer=where[0]),
            severity=severity,
        )
        yield self._seen

    def _listen(self, sample: Sample) -> None:
        """Which layers have run, and to which an error came back; some take turns."""
        if not sample.has(Deltas):
            return
        self._called |= {sample.network.modules[place].name for place in sample.called}
        errors = zip(sample.network.modules, sample.column(Deltas, "out"), strict=True)
        self._erring |= {module.name for module, error in errors if error is not None and error != -1}

    def _is_target(self, layer: str) -> bool:
        """Whether it runs beside what trains; unknown of one that was not seen to run, or compiled."""
        return bool(self._erring) and layer in self._called and layer not in self._erring

    def _over(self, sample: Sample) -> Iterable[Finding]:
        if self._seen is not None and self._scheduled:
            yield replace(self._seen, severity="info", last_step=sample.step, advice=_TRAINS)
            self._seen = None


_BEHIND = (
    "'{layer}' requires no gradient while layers before it train. If that is not meant, call "
    "requires_grad_(True) on it and give its parameters to the optimizer"
)
_HELD = (
    "'{layer}' requires no gradient, though the optimizer holds its parameters. If it is to train, call "
    "requires_grad_(True) on it"
)
_TRAINS = "what was frozen trains now"
_ON_PURPOSE = (
    "'{layer}' requires no gradient; it is taken to be frozen on purpose, as a backbone or a target is"
)


def _layers(sample: Sample) -> tuple[list[str], list[str], set[str]]:
    """Layers whose matrices are all frozen; those with one that trains; those that the optimizer holds.

    Tables (embeddings) and layers of vectors alone (normalisations) are neither.
    """
    states: dict[str, list[float]] = {}
    held: set[str] = set()
    for info, (trainable, _, holds, _) in zip(sample.network.parameters, sample[Standing], strict=True):
        if info.matrix:
            states.setdefault(info.layer, []).append(trainable)
            if holds:
                held.add(info.layer)
    frozen = [layer for layer, each in states.items() if not any(each)]
    return frozen, [layer for layer in states if layer not in frozen], held
