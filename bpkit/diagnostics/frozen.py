"""Frozen: parameters that require no gradient, where that looks like a mistake.

A frozen backbone, embeddings or normalisations, and everything but the adapters, are frozen on purpose:
they are the front of the network, or most of it. A few layers that are frozen behind ones that train, a
head above all, are not; nor are a few at the front that the optimizer was given to train.
"""

from __future__ import annotations

from collections.abc import Iterable

from bpkit.core.finding import Finding, Severity
from bpkit.diagnostics.diagnostic import Diagnostic
from bpkit.diagnostics.instruments import Activations, Standing
from bpkit.diagnostics.log import rows
from bpkit.diagnostics.sample import Sample

SAMPLES = 3


class Frozen(Diagnostic):
    """Layers of which every matrix is frozen."""

    needs = (Standing, Activations)

    def __init__(self) -> None:
        self._samples = 0

    def observe(self, sample: Sample) -> Iterable[Finding]:
        """A finding from the third sample on: a warning where it looks like a mistake."""
        self._samples += 1
        if self._samples < SAMPLES:
            return
        frozen, training, held = _layers(sample)
        if not frozen or not training:
            return
        order = {name: place for place, name in enumerate(rows(sample))}
        first = min(order[layer] for layer in training)
        behind = [layer for layer in frozen if order[layer] > first]
        few = len(frozen) < len(training)
        at_front = [layer for layer in frozen if layer in held and layer not in behind]
        mistaken = (behind or at_front) if few else []
        severity: Severity = "warning" if mistaken else "info"
        where = tuple(mistaken or frozen)
        yield sample.finding(
            "frozen",
            where,
            {"layers_frozen": len(frozen), "layers_training": len(training)},
            (_ON_PURPOSE if not mistaken else _BEHIND if behind else _HELD).format(layer=where[0]),
            severity=severity,
        )


_BEHIND = (
    "'{layer}' requires no gradient while layers before it train. If that is not meant, call "
    "requires_grad_(True) on it and give its parameters to the optimizer"
)
_HELD = (
    "'{layer}' requires no gradient, though the optimizer holds its parameters. If it is to train, call "
    "requires_grad_(True) on it"
)
_ON_PURPOSE = "'{layer}' requires no gradient; it is taken for a backbone that is frozen on purpose"


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
