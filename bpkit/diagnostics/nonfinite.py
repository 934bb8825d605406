"""Nonfinite: NaN or infinity among the gradients, and who made it first.

One step spreads it to every weight, and all layers then have it: what counts is the first producer. It is
the one whose own inputs were finite: the batch, a module in its forward, what stands between two modules,
the loss, a module in its backward, or the optimizer. On a sampled step that is seen as it happens; on any
other the step is run once more on a copy (`Sentinel`).

A step that a loss scaler skips is none: overflow is how the scale is found. Where it skips every one, for a
forward that overflows, or at whatever scale, no sample comes, and the finding is made in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import isfinite, isnan
from typing import TYPE_CHECKING

from bpkit.core.finding import Finding
from bpkit.diagnostics.diagnostic import Diagnostic
from bpkit.diagnostics.instruments import (
    Deltas,
    Finite,
    GradientNorm,
    Instrument,
    Sentinel,
    WeightNorm,
)
from bpkit.diagnostics.instruments.figures import Value
from bpkit.diagnostics.producer import Seen, by_gradients
from bpkit.diagnostics.sample import Reading, Sample

if TYPE_CHECKING:
    from bpkit.diagnostics.watcher import Watcher


class Nonfinite(Diagnostic):
    """NaN or infinity among the gradients, as the first such sample had it: later ones only spread it."""

    needs = (GradientNorm, WeightNorm)
    wants = (Finite, Deltas, Sentinel)

    def __init__(self) -> None:
        self._first: Finding | None = None
        # Modules, and columns, with infinities in good health, as masks make them.
        self._usual: set[tuple[str, str]] = set()

    def attach(self, watcher: Watcher) -> None:
        """Have it told at once when no step is taken any more."""

        def skipped(values: Sequence[Value], scale: float | None) -> None:
            reading: dict[type[Instrument], Reading] = {
                Sentinel: Reading(tuple(values), Sentinel.provenance, Sentinel.columns)
            }
            sample = Sample(watcher.step + 1, watcher.subject.network, reading)
            for finding in self._skipped(sample, scale):
                watcher.report(self, finding)

        watcher.instrument(Sentinel).skipped = skipped

    def observe(self, sample: Sample) -> Iterable[Finding]:
        """A finding for every sample with a norm that is not finite."""
        norms = sample.by_layer(GradientNorm)
        bad = tuple(layer for layer, norm in norms.items() if not isfinite(norm))
        if not bad:
            if sample.has(Finite):
                for column in ("inputs", "outputs"):
                    worst = sample.by_module(Finite, column)
                    self._usual |= {(name, column) for name, value in worst.items() if value > 0}
            return
        if self._first is None:
            self._first = self._finding(sample, norms, bad)
        yield replace(self._first, last_step=sample.step)

    def _finding(self, sample: Sample, norms: Mapping[str, float], bad: tuple[str, ...]) -> Finding:
        producer = Seen(sample, self._usual).producer() or by_gradients(sample, bad)
        weights = sum(not isfinite(norm) for norm in sample.by_layer(WeightNorm).values())
        evidence = {
            "layers_nonfinite": float(len(bad)),
            "layers_nan": float(sum(isnan(norm) for norm in norms.values())),
            "layers": float(len(norms)),
            "layers_with_nonfinite_weights": float(weights),
        }
        return sample.finding("nonfinite", producer.layers, evidence, producer.advice, severity="critical")

    def _skipped(self, sample: Sample, scale: float | None) -> Iterable[Finding]:
        if self._first is not None:
            return
        producer = Seen(sample, self._usual).producer()
        advice = _NO_STEP
        if scale is not None:
            advice = f"{_SKIPS}, and its scale is {scale:.2g} by now: {_TOO_LARGE}"
        self._first = sample.finding(
            "nonfinite",
            () if producer is None else producer.layers,
            {} if scale is None else {"loss_scale": scale},
            advice if producer is None else f"{advice}. First is {producer.advice}",
            severity="critical",
        )
        yield self._first


_NO_STEP = "gradients are not finite, backward after backward, and no step is taken on them"
_SKIPS = "no step is taken: the loss scaler skips every one"
_TOO_LARGE = (
    "no scale mends what is not finite without it. Where a forward in float16 passes 65504, compute that "
    "part in bfloat16 or float32 (torch.autocast(device, enabled=False)), or bring down what goes into it"
)
