"""Exploding: the gradient grows beyond what a step can follow, over depth, over time, or at once.

Four kinds of sign, each measured against the run itself:

*growth*: the norm is `GROWTH` decades above the median of the run's start and of its recent past, and
above six robust deviations of it. Pascanu, Mikolov & Bengio (2013) clip at half to ten times the average
norm; a hundred times is past that.
*depth*: a profile over depth (`bpkit.diagnostics.depth`) that rises towards the input, or the signal
towards the output, as they do where weights amplify: a gain of 2 a layer is three decades in ten layers (He
et al. 2015, section 2.2).
*leap*: one step moves a layer by several times its own size.
*sensitivity*: scaling a layer by a thousandth would move the loss by all of itself, as with a recurrent
layer, whose gradient is multiplied by one matrix at every time step.

One sample with a sign is a spike, from which healthy runs recover; a verdict wants several in a row, one
that is beyond doubt, or a gradient that is no longer finite right after a sign. Once the signs are gone
and the run learns, it is a note.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import isfinite, log10
from statistics import median

from bpkit.core.finding import Finding, Severity
from bpkit.diagnostics.advice import against_exploding
from bpkit.diagnostics.depth import (
    bias_gradients,
    elasticities,
    measured_signals,
    moves,
    signals,
    trend,
)
from bpkit.diagnostics.diagnostic import Diagnostic
from bpkit.diagnostics.instruments import Activations, GradientNorm, GradientRate, WeightNorm
from bpkit.diagnostics.learning import learned_something
from bpkit.diagnostics.sample import Sample

FIRST = 5  # samples that stand for the run's start
RECENT = 30
IN_A_ROW = 3
RECOVERED = 10  # samples in a row without a sign
GROWTH = 2.0
DEVIATIONS = 6.0
DEPTH = 3.0
AGREEMENT = 0.8
LEAP = 3.0
SENSITIVITY = 1e3
HARMLESS = 1e-2  # a step of a hundredth of every layer explodes nothing, however the norm has grown
BEYOND_DOUBT = 2.0  # decades above a threshold


@dataclass(frozen=True)
class Sign:
    """Decades by which a threshold is passed, where, and the figure that passes it."""

    beyond: float
    layers: tuple[str, ...]
    evidence: Mapping[str, float]


class Exploding(Diagnostic):
    """Growth of the gradient over depth, over time, or beyond the size of the weights."""

    needs = (GradientNorm, WeightNorm, GradientRate)
    wants = (Activations,)

    def __init__(self) -> None:
        self._signal: Mapping[str, float] = {}
        self._start: Sample | None = None
        self._first: list[float] = []
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._loss = 0.0
        self._row = 0
        self._severity: Severity | None = None
        self._suspicion: Finding | None = None
        self._reported: Finding | None = None
        self._quiet = 0

    def observe(self, sample: Sample) -> Iterable[Finding]:
        """A finding from the third sample in a row with signs, or at once when beyond doubt."""
        self._start = self._start or sample
        if sample.has(Activations) or not sample.called:
            self._signal = measured_signals(sample) if sample.called else signals(sample)
        total = sample.total(GradientNorm)
        if not isfinite(total):
            if self._suspicion is not None:
                self._suspicion = replace(self._suspicion, severity="critical", last_step=sample.step)
                self._reported = self._suspicion
                yield self._suspicion
            return
        signs = [sign for sign in self._signs(sample, total) if sign.beyond >= 0]
        self._keep(total)
        if not signs:
            self._row, self._suspicion = 0, None
            yield from self._recovery(sample)
            return
        self._row += 1
        self._quiet = 0
        if max(sign.beyond for sign in signs) >= BEYOND_DOUBT:
            self._severity = "critical"
        elif self._row >= IN_A_ROW:
            self._severity = self._severity or "warning"
        since = self._suspicion.step if self._suspicion is not None else sample.step
        self._suspicion = _finding(sample, signs, since, self._severity or "info", self._start)
        if self._severity is not None:
            self._reported = self._suspicion
            yield self._suspicion

    def _recovery(self, sample: Sample) -> Iterable[Finding]:
        """A note in place of the verdict, once the run has been without signs for long and learns."""
        self._quiet += 1
        if self._reported is None or self._quiet < RECOVERED or not learned_something(sample):
            return
        yield replace(self._reported, severity="info", advice="the run recovered")
        self._reported = self._severity = None

    def _keep(self, total: float) -> None:
        if total > 0:
            self._recent.append(log10(total))
            if len(self._first) < FIRST:
                self._first.append(log10(total))

    def _signs(self, sample: Sample, total: float) -> Iterable[Sign]:
        """All signs, the nearest to a cause first: depth, sensitivity, leap, growth."""
        updates = moves(sample)
        if updates and max(updates.values()) < HARMLESS:
            return
        yield from _over_depth(sample, self._signal)
        if sample.loss is not None and isfinite(sample.loss):
            self._loss = max(self._loss, abs(sample.loss))
            reach = elasticities(sample)
            if reach and self._loss:
                layer = max(reach, key=reach.__getitem__)
                yield _over(reach[layer] / self._loss, SENSITIVITY, (layer,), "elasticity_over_loss")
        if updates:
            layers = tuple(layer for layer, update in updates.items() if update >= LEAP)
            yield _over(max(updates.values()), LEAP, layers, "update_over_weight")
        if self._first and total > 0:
            base = max(median(self._first), median(self._recent))
            spread = 1.4826 * median(abs(value - base) for value in self._recent)
            threshold = max(GROWTH, DEVIATIONS * spread)
            yield Sign(
                log10(total) - base - threshold, _largest(sample), {"norm_over_usual": total / 10**base}
            )


def _finding(sample: Sample, signs: list[Sign], since: int, severity: Severity, start: Sample) -> Finding:
    """Where and what to try by the first sign, which is nearest to the cause; the evidence of all."""
    evidence = {name: value for sign in signs for name, value in sign.evidence.items()}
    return sample.finding(
        "exploding",
        signs[0].layers,
        {**evidence, "gradient_norm": sample.total(GradientNorm)},
        against_exploding(start, signs[0].layers),
        severity=severity,
        step=since,
    )


def _over_depth(sample: Sample, signal: Mapping[str, float]) -> Iterable[Sign]:
    """Gradients that rise towards the input, signals that rise towards the output."""
    profiles = ((elasticities(sample), -1), (bias_gradients(sample), -1), (signal, 1))
    for profile, direction in profiles:
        slope = trend(profile)
        if slope is not None and slope.agreement >= AGREEMENT:
            decades, layers = direction * slope.decades, tuple(slope.profile)
            factor = 10 ** (decades / (len(layers) - 1))
            where = layers[len(layers) // 2 :] if direction > 0 else layers[: (len(layers) + 1) // 2]
            yield Sign(decades - DEPTH, where, {"decades_over_depth": decades, "factor_per_layer": factor})
    if len(signal) > 1:
        ends = tuple(signal)
        ratio = signal[ends[-1]] / signal[ends[0]]
        yield _over(ratio, 10 ** (DEPTH + 1), ends, "signal_last_over_first")


def _over(value: float, threshold: float, layers: tuple[str, ...], name: str) -> Sign:
    return Sign(log10(value / threshold) if value > 0 else -1.0, layers, {name: value})


def _largest(sample: Sample) -> tuple[str, ...]:
    """The layers that hold the gradient: those within a decade of the largest."""
    norms = sample.by_layer(GradientNorm)
    largest = max(norms.values())
    return tuple(layer for layer, value in norms.items() if value >= 0.1 * largest)
