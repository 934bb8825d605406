"""Divergence: the loss rises and stays up, or is no number any more; and spikes, from which a run recovers.

*Divergence* is measured against the run's own best: the loss has risen from it by a good part of what it
started with, by far more than its noise, through a whole window. An adversary's loss rises as its opponent
learns, so the gradient has to say the same: it has grown well beyond what it was when the loss was at its
best.

*A spike* is one loss far above its neighbours' spread. The last steps before it are then written to the
logdir (`spike-STEP.json`): losses, batch ids where the loop gives them (`watcher.batch(ids)`), norms by
layer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from math import isfinite
from statistics import median
from typing import TYPE_CHECKING

from bpkit.core.finding import Finding, Severity
from bpkit.diagnostics.diagnostic import Diagnostic
from bpkit.diagnostics.instruments import GradientNorm, Standing
from bpkit.diagnostics.recorder import Recorder
from bpkit.diagnostics.sample import Sample

if TYPE_CHECKING:
    from bpkit.diagnostics.watcher import Watcher

WINDOW = 16  # losses
RISEN = 0.25  # of the first loss
NOISE = 6.0  # robust deviations
GROWN = 3.0  # the gradient, over what it was at the best loss
ABOVE = 0.5  # of the first loss, that a run stands above it from step
AFTER = 40  # on: a rate that threw it there keeps it there
SPIKE = 12.0  # robust deviations above the median of the window before, and
HIGH = 0.5  # this part of the first loss


class Divergence(Diagnostic):
    """A loss that rises from its best and stays up; spikes are recorded."""

    needs = (GradientNorm, Standing)

    def __init__(self) -> None:
        self._recorder = Recorder(None)
        self._losses: deque[float] = deque(maxlen=4 * WINDOW)
        self._gradients: deque[float] = deque(maxlen=WINDOW)
        self._best = float("inf")
        self._gradient_at_best = float("nan")
        self._spikes = 0
        self._diverged = False

    def attach(self, watcher: Watcher) -> None:
        self._recorder = watcher.recorder = Recorder(watcher.logdir)

    def observe(self, sample: Sample) -> Iterable[Finding]:
        """A finding where the loss has gone up for good, is not finite, or spiked."""
        total = sample.total(GradientNorm)
        norms = sample.by_layer(GradientNorm)
        self._recorder.note(sample.step, gradient_norm=total, gradient_norms=norms)
        for step, loss in sample.losses:
            self._recorder.note(step, loss=loss)
            if not isfinite(loss):
                yield self._finding(sample, "critical", {"loss": loss}, _NOT_FINITE, step)
                return
            yield from self._spike(sample, step, loss)
            self._losses.append(loss)
        if not sample.losses or len(self._losses) < WINDOW:
            return
        if isfinite(total):
            self._gradients.append(total)
        yield from self._risen(sample)

    def _risen(self, sample: Sample) -> Iterable[Finding]:
        recent = [*self._losses][-WINDOW:]
        now, gradient = median(recent), median([*self._gradients][-3:] or [0.0])
        if now < self._best:
            self._best, self._gradient_at_best = now, gradient
        series = sample.history.loss
        size = max(abs(series.start), 1e-12)
        rise = now - self._best
        up = rise > max(RISEN * size, NOISE * series.noise) and min(recent) > self._best
        grown = gradient > GROWN * self._gradient_at_best
        beyond = now > 1.5 * size + max(self._best, 0.0)
        above = now - series.start > max(ABOVE * size, NOISE * series.noise) and sample.step >= AFTER
        if (up and (grown or beyond)) or (above and sample.history.alone):
            self._diverged = True
            evidence = {
                "loss": now,
                "best": self._best,
                "gradient_over_best": gradient / self._gradient_at_best,
            }
            yield self._finding(sample, "critical" if now > series.start else "warning", evidence, _RISEN)
        elif self._diverged and not (up or above):
            self._diverged = False
            yield self._finding(
                sample, "info", {"loss": now, "best": self._best}, "the loss has come down again"
            )

    def _spike(self, sample: Sample, step: int, loss: float) -> Iterable[Finding]:
        before = [*self._losses][-WINDOW:]
        if len(before) < WINDOW:
            return
        middle = median(before)
        spread = 1.4826 * median(abs(value - middle) for value in before)
        if loss - middle <= max(SPIKE * spread, HIGH * abs(sample.history.loss.start)):
            return
        self._spikes += 1
        evidence = {"loss": loss, "usual": middle, "spikes": float(self._spikes)}
        path = self._recorder.write(step, evidence) if self._spikes <= 5 else None
        where = f" The steps before it are in {path.name}." if path else ""
        yield self._finding(sample, "info", evidence, _SPIKE + where, step)

    def _finding(
        self, sample: Sample, severity: Severity, evidence: dict[str, float], advice: str, step: int = 0
    ) -> Finding:
        rates = [each for each in sample.column(Standing, "rate") if each and each == each]
        return sample.finding(
            "divergence",
            (),
            {**evidence, "learning_rate": max(rates, default=0.0)},
            advice,
            severity=severity,
            step=step or sample.step,
        )


_NOT_FINITE = (
    "the loss is not finite: see the finding nonfinite for who made it first; without one the gradient "
    "is still "
    "finite, and the loss alone takes a log or a division of zero"
)
_RISEN = (
    "the loss rises and stays up: go back to a checkpoint from before, lower the learning rate (look at "
    "its schedule "
    "around this step) or warm it up, and clip the gradient with torch.nn.utils.clip_grad_norm_"
)
_SPIKE = "one loss stands far above those around it: look at that batch."
