"""Vanishing: the gradient dies out on its way to the input, so that the early layers do not learn.

Through a layer z = W a, a = σ(z') it is multiplied by Wᵀ diag σ': by less than one on average, depth after
depth (Bengio, Simard & Frasconi 1994; Glorot & Bengio 2010). A sigmoid's slope is at most 1/4; torch's
default initialisation gives W a gain of 1/√3, whence 0.14 a layer for sigmoid and 0.58 for tanh.

*Decay* is a profile over depth (`bpkit.diagnostics.depth`) that falls towards the input by `DECADES`, in
nearly every pair of layers, in the median of `WINDOW` samples. A network near its minimum has small
gradients everywhere, and no slope. *Collapse* is the same fault in a network without biases: signals
shrink forward as δ shrinks back, every weight's gradient is as small, and no layer moves the loss.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import log10
from statistics import median

from bpkit.core.finding import Finding, Severity
from bpkit.diagnostics.advice import against_vanishing
from bpkit.diagnostics.depth import bias_gradients, elasticities, moves, trend, typical
from bpkit.diagnostics.diagnostic import Diagnostic
from bpkit.diagnostics.instruments import GradientNorm, GradientRate, WeightNorm
from bpkit.diagnostics.sample import Sample

WINDOW = 10  # samples: a zero initialisation, or the start of a warm-up, is over by then
# A layer that learns a thousand times slower than the last is as good as random where the update is
# the gradient times a rate. Adam and its kin divide by the gradient's size, and live with more.
DECADES = 3.0
DECADES_NORMALISED = 5.0
DECADES_CRITICAL = 6.0  # float32 resolves 6e-8 of a weight: smaller updates are rounded away
AGREEMENT = 0.8
NAMED = 1e-2  # a layer is named when its figure is below this share of the largest
MOVES = 1e-4  # a tenth of the usual update of 1e-3 of a weight a step: it moves within a few epochs
COLLAPSED = 1e-4  # scaling any layer by 1 % moves the loss by a millionth of what the output's bias can
RECOVERS = 2.0  # growth over the window that tells a zero initialisation from a collapse
LEARNS = 0.5  # a loss that has halved is that of a network that learns, slope or no slope


class Vanishing(Diagnostic):
    """Decay of the gradient over depth."""

    needs = (GradientNorm, WeightNorm, GradientRate)

    def __init__(self) -> None:
        self._weights: deque[Mapping[str, float]] = deque(maxlen=WINDOW)
        self._biases: deque[Mapping[str, float]] = deque(maxlen=WINDOW)
        self._losses: deque[float] = deque(maxlen=WINDOW)
        self._first_losses: list[float] = []
        self._seen: Finding | None = None

    def observe(self, sample: Sample) -> Iterable[Finding]:
        """A finding once the window agrees; the same as `"info"` once the network learns after all."""
        self._weights.append(elasticities(sample))
        self._biases.append(bias_gradients(sample))
        if sample.loss is not None:
            self._losses.append(sample.loss)
            if len(self._first_losses) < WINDOW // 2:
                self._first_losses.append(sample.loss)
        if len(self._weights) < WINDOW:
            return
        finding = self._decay(sample) or self._collapse(sample)
        if finding is not None:
            self._seen = replace(finding, severity="info") if self._learns() else finding
            yield self._seen
        elif self._seen is not None and (self._learns() or not self._silent(sample)):
            yield replace(self._seen, severity="info")
            self._seen = None

    def _decay(self, sample: Sample) -> Finding | None:
        trends = [trend(typical(self._weights)), trend(typical(self._biases))]
        falling = [each for each in trends if each is not None and each.agreement >= AGREEMENT]
        steepest = max(falling, key=lambda each: each.decades, default=None)
        updates = moves(sample)
        if steepest is None or steepest.decades < (DECADES if updates else DECADES_NORMALISED):
            return None
        values = steepest.profile
        early = list(values)[: max(1, len(values) // 4)]
        if updates and median(updates.get(layer, 0.0) for layer in early) >= MOVES:
            return None
        evidence = {
            "decades_over_depth": steepest.decades,
            "factor_per_layer": 10 ** (-steepest.decades / (len(values) - 1)),
            "layers": len(values),
            "gradient_norm_first": sample.by_layer(GradientNorm)[early[0]],
            "gradient_norm_last": sample.by_layer(GradientNorm)[list(values)[-1]],
        }
        if updates:
            evidence["update_ratio_first"] = updates.get(early[0], 0.0)
        largest = max(values.values())
        where = tuple(layer for layer, value in values.items() if value < NAMED * largest)
        return self._finding(sample, where, steepest.decades, evidence)

    def _collapse(self, sample: Sample) -> Finding | None:
        reach = [max(profile.values(), default=0.0) for profile in self._weights]
        values = typical(self._weights)
        scale = self._scale(sample)
        if len(values) < 2 or not scale or not 0 < reach[-1] < COLLAPSED * scale:
            return None
        if reach[-1] > RECOVERS * reach[1]:
            return None
        evidence = {"largest_elasticity": reach[-1] / scale, "layers": len(values)}
        return self._finding(sample, tuple(values), -log10(reach[-1] / scale), evidence)

    def _scale(self, sample: Sample) -> float:
        """What elasticity is small against: the largest gradient of a bias, else the loss."""
        infos = sample.network.parameters
        vectors = [
            gradient
            for info, gradient in zip(infos, sample[GradientNorm], strict=True)
            if gradient is not None and len(info.shape) == 1
        ]
        return max(vectors, default=0.0) or abs(sample.loss or 0.0)

    def _silent(self, sample: Sample) -> bool:
        """Whether a layer that was named has no gradient left at all: the trend ends there, not the fault."""
        norms = sample.by_layer(GradientNorm)
        return self._seen is not None and any(norms.get(layer) == 0 for layer in self._seen.layers)

    def _learns(self) -> bool:
        if not self._losses:
            return False
        return median(self._losses) < LEARNS * median(self._first_losses)

    def _finding(
        self, sample: Sample, layers: tuple[str, ...], decades: float, evidence: Mapping[str, float]
    ) -> Finding:
        severity: Severity = "critical" if decades >= DECADES_CRITICAL else "warning"
        return sample.finding(
            "vanishing", layers, evidence, against_vanishing(sample, layers), severity=severity
        )
