"""Plateau: the loss stays where it began.

Measured against the loss's own noise: the last third of the run so far lies no lower than the middle one, and
neither has come down from the start by more than a hundredth of it. A run that learned and then levels off
has converged, which is no fault; one that waits for a warm-up has not begun.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import sqrt
from statistics import fmean

from bpkit.core.finding import Finding
from bpkit.diagnostics.diagnostic import Diagnostic
from bpkit.diagnostics.history import Series
from bpkit.diagnostics.instruments import GradientNorm, OutputError, Standing
from bpkit.diagnostics.sample import Sample

AFTER = 80  # steps
POINTS = 16  # losses at least, or errors at the output
FALL = 0.02  # of the first loss
SURE = 2.0  # standard errors


class Plateau(Diagnostic):
    """Nothing is learned from the start on."""

    needs = (GradientNorm, OutputError, Standing)

    def __init__(self) -> None:
        self._first_rate: float | None = None
        self._seen = False

    def observe(self, sample: Sample) -> Iterable[Finding]:
        """A finding from step 80 on; of information once the loss falls after all."""
        rate = max((each for each in sample.column(Standing, "rate") if each and each == each), default=0.0)
        self._first_rate = rate if self._first_rate is None else self._first_rate
        history = sample.history
        series = history.loss if history.loss.count else history.error
        progress = history.progress
        if (
            sample.step < AFTER
            or series.count < POINTS
            or progress is None
            or rate > 10 * self._first_rate > 0
        ):
            return
        flat = progress < FALL and not falling(series)
        if not flat and not self._seen:
            return
        self._seen = flat
        yield Finding(
            kind="plateau",
            severity="warning" if flat else "info",
            layers=(),
            step=sample.step,
            last_step=sample.step,
            evidence={
                "first": series.start,
                "now": series.now,
                "progress": progress,
                "gradient_norm": sample.total(GradientNorm),
                "learning_rate": rate,
            },
            advice=(
                f"the loss has not moved from {series.start:.4g} in {sample.step} steps: raise the "
                f"learning rate from "
                f"{rate:.3g} by tens until it does, look whether inputs and targets belong together "
                f"(overfit one batch "
                "first), and at the other findings"
                if flat
                else "the loss has begun to fall"
            ),
        )


def falling(series: Series) -> bool:
    """Whether the last third of the run lies below the middle one, by more than the noise of their means."""
    values = [value for _, value in series.blocks]
    third = len(values) // 3
    if third < 3:
        values = [value for _, value in series.recent]
        third = len(values) // 3
    if third < 3:
        return False
    middle, last = values[third : 2 * third], values[-third:]
    spread = sqrt((_variance(middle) + _variance(last)) / third)
    return fmean(middle) - fmean(last) > SURE * spread


def _variance(values: list[float]) -> float:
    mean = fmean(values)
    return fmean((value - mean) ** 2 for value in values)
