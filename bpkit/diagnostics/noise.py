"""Noise: the gradient of a batch is mostly chance, and the run gets nowhere.

With g_n the gradient of one case, G its mean over all data and Σ its covariance, the gradient of a batch of B
has mean G and covariance Σ / B. From the mean of ‖g_n‖² over cases and ‖G_B‖² of the batch follow, without
bias (McCandlish, Kaplan & Amodei, "An empirical model of large-batch training", 2018, appendix A, with
batches of 1 and B):

    tr Σ = (mean ‖g_n‖² - ‖G_B‖²) B / (B - 1)        ‖G‖² = (B ‖G_B‖² - mean ‖g_n‖²) / (B - 1)

Their ratio, tr Σ / ‖G‖², is the *noise scale*: the batch at which noise and signal are of one size, beyond
which larger batches help little. The signal-to-noise ratio of a batch is ‖G‖ / √(tr Σ / B). Both are of means
over `WINDOW` samples; a signal too small for these to resolve is taken to be as large as they can miss.

Much noise is no fault: near a minimum every gradient is. A verdict wants a noise scale far above the batch,
successive gradients whose directions have nothing to do with one another, and a loss that has surely gone
nowhere: that has risen, or that stands where it stood after `PATIENCE` cases, for noise takes time to
average out, or that has stalled while each step moves the weights by a hundredth, wherever the batch
points. Where the batch is of one case the directions alone tell: the mean cosine of two independent
gradients is 1 / (1 + noise scale / B).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import isfinite, isnan, sqrt
from statistics import fmean, median, stdev
from typing import NamedTuple

from bpkit.core.finding import Finding
from bpkit.diagnostics.diagnostic import Board, Diagnostic
from bpkit.diagnostics.instruments import (
    AccumulatedNorm,
    Direction,
    GradientNorm,
    OutputError,
    PerSample,
    Standing,
    Update,
    WeightNorm,
)
from bpkit.diagnostics.learning import learned_nothing, learned_something, lost, stalled
from bpkit.diagnostics.sample import Sample, norm
from bpkit.diagnostics.update_ratio import ratios

WINDOW = 12  # samples: ten in a row at the start, and some far apart
FAR = 4.0  # times the batch, where four fifths of a gradient's square are noise
PATIENCE = 5000  # cases; a hundred steps of a usual batch
WALK = 1e-2  # of its weights that a layer moves a step: at random, it is nowhere after a hundred
RANDOM = 0.02  # a mean cosine below this, or below three standard errors, is none


class Estimate(NamedTuple):
    """tr Σ and ‖G‖² of a layer from one sample, and the batch."""

    trace: float
    signal: float
    batch: float


class Noise(Diagnostic):
    """Noise scale and signal-to-noise ratio by layer; a verdict where noise stops the learning."""

    needs = (PerSample, AccumulatedNorm, Direction, GradientNorm, OutputError, Update, WeightNorm, Standing)

    def __init__(self) -> None:
        self._layers: dict[str, deque[Estimate]] = {}
        self._totals: deque[Estimate] = deque(maxlen=WINDOW)
        self._cosines: deque[float] = deque(maxlen=WINDOW)
        self._norms: tuple[float | None, ...] = ()
        self._seen: Finding | None = None

    def observe(self, sample: Sample) -> Iterable[Finding]:
        """A finding once a window of samples is noise and nothing is learned; `"info"` once something is."""
        estimates = _estimates(sample)
        for layer, estimate in estimates.items():
            self._layers.setdefault(layer, deque(maxlen=WINDOW)).append(estimate)
        if estimates:
            parts = zip(*estimates.values(), strict=True)
            trace, signal, batches = (tuple(part) for part in parts)
            self._totals.append(Estimate(sum(trace), sum(signal), max(batches)))
        cosine = self._cosine(sample)
        if cosine is not None:
            self._cosines.append(cosine)
        walks = median([*ratios(sample).values()] or [0.0])
        nowhere = _goes_nowhere(sample) or (walks > WALK and stalled(sample))
        if len(self._cosines) == WINDOW and self._is_noise() and nowhere:
            self._seen = self._finding(sample)
            yield self._seen
        elif self._seen is not None and learned_something(sample):
            yield replace(self._seen, severity="info")
            self._seen = None

    def columns(self, sample: Sample) -> Mapping[str, Mapping[str, float]]:
        """Noise scale, in cases, and signal-to-noise ratio by layer."""
        known = {layer: self._layers[layer] for layer in sample.layers if self._layers.get(layer)}
        return {
            "noise": {layer: scale(each) for layer, each in known.items()},
            "signal to noise": {layer: sqrt(each[-1].batch / scale(each)) for layer, each in known.items()},
        }

    def write(self, sample: Sample, board: Board) -> None:
        """`gradients/noise scale`, of all layers that have one together."""
        if self._totals:
            board.add_scalar("gradients/noise scale", scale(self._totals), sample.step)

    def _cosine(self, sample: Sample) -> float | None:
        """Of the whole gradient with the last sampled one, from those of its parts."""
        before, self._norms = self._norms, sample[GradientNorm]
        if len(before) != len(self._norms):
            return None
        cosines = sample.column(Direction, "last")
        parts = [
            (now * then, cosine)
            for now, then, cosine in zip(self._norms, before, cosines, strict=True)
            if now and then and cosine is not None and not isnan(cosine)
        ]
        lengths = [norm([each or 0.0 for each in norms]) for norms in (before, self._norms)]
        whole = lengths[0] * lengths[1]
        return sum(part * cosine for part, cosine in parts) / whole if parts and isfinite(whole) else None

    def _is_noise(self) -> bool:
        cosine = fmean(self._cosines)
        unsure = stdev(self._cosines) / sqrt(WINDOW)
        if abs(cosine) > max(RANDOM, 3 * unsure) or cosine > 1 / (1 + FAR):
            return False
        return not self._totals or _share(self._totals) < 1 / FAR

    def _finding(self, sample: Sample) -> Finding:
        noisy = [layer for layer in sample.layers if _share(self._layers.get(layer, ())) < 1 / FAR]
        layers = tuple(noisy or sample.layers)
        evidence = {"mean_cosine_of_gradients": fmean(self._cosines)}
        at_least = "several cases"
        if self._totals:
            found, batch = scale(self._totals), self._totals[-1].batch
            at_least = f"{found:.0f} cases or more"
            evidence |= {"noise_scale": found, "batch": batch, "signal_to_noise": sqrt(batch / found)}
        progress = sample.history.progress
        if progress is not None:
            evidence["progress"] = progress
        return sample.finding(
            "noise",
            layers,
            evidence,
            f"steps go where the batch happens to point. Take batches of {at_least}, or accumulate "
            "gradients over as many, and lower the learning rate; if that moves nothing, look whether the "
            "targets belong to their inputs",
        )


def scale(window: Iterable[Estimate]) -> float:
    """Noise over signal, in their means over a window; a signal below tr Σ / (B √window) counts as that."""
    traces, signals, batches = zip(*window, strict=True)
    trace = max(fmean(traces), 1e-300)
    return trace / max(fmean(signals), trace / (fmean(batches) * sqrt(len(traces))))


def _goes_nowhere(sample: Sample) -> bool:
    cases = max((each for each in sample.column(PerSample, "cases") if each is not None), default=1.0)
    return lost(sample) or (sample.step * cases >= PATIENCE and learned_nothing(sample))


def _share(window: Iterable[Estimate]) -> float:
    """Signal over noise, in squares, of the batch; negative where the signal is below what can be told."""
    window = list(window)
    trace = sum(each.trace for each in window)
    return sum(each.signal * each.batch for each in window) / trace if trace > 0 else 1.0


def _estimates(sample: Sample) -> dict[str, Estimate]:
    """By layer, where the batch has two cases or more."""
    sample.alike(PerSample, AccumulatedNorm, one_rank=True)
    squares, cases = sample.by_module(PerSample, "square"), sample.by_module(PerSample, "cases")
    found = {}
    for layer, gradient in sample.by_layer(AccumulatedNorm).items():
        if layer not in squares or cases[layer] < 2:
            continue
        square, batch = squares[layer], cases[layer]
        trace = (square - gradient**2) * batch / (batch - 1)
        signal = (batch * gradient**2 - square) / (batch - 1)
        if isfinite(trace) and isfinite(signal) and square > 0:
            found[layer] = Estimate(trace, signal, batch)
    return found
