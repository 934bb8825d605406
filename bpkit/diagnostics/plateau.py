"""Plateau: the loss stays where it began.

Measured against the loss's own noise, and against guessing: a classifier at ln C has learned nothing,
wherever it came down from. A run that learned and then levels off has converged, which is no fault; one that
waits for a warm-up has not begun; and where other networks train on the same loss, as in a GAN, it says
nothing. Without a loss there is the error at the output, which is worth a note.
"""

from __future__ import annotations

from collections.abc import Iterable

from bpkit.core.finding import Finding
from bpkit.diagnostics.diagnostic import Diagnostic
from bpkit.diagnostics.instruments import GradientNorm, OutputError, Standing
from bpkit.diagnostics.learning import learned_nothing, lost
from bpkit.diagnostics.sample import Sample

AFTER = 80  # steps


class Plateau(Diagnostic):
    """Nothing is learned from the start on."""

    needs = (GradientNorm, Standing)
    wants = (OutputError,)

    def __init__(self) -> None:
        self._first_rate: float | None = None
        self._seen = False

    def observe(self, sample: Sample) -> Iterable[Finding]:
        """A finding from step 80 on; of information once the loss falls after all."""
        rate = max((each for each in sample.column(Standing, "rate") if each and each == each), default=0.0)
        self._first_rate = rate if self._first_rate is None else self._first_rate
        if sample.step < AFTER or rate > 10 * self._first_rate > 0 or not sample.history.alone:
            return
        flat = learned_nothing(sample)
        if not flat and not self._seen:
            return
        self._seen = flat
        history = sample.history
        series = history.loss if history.loss.count else history.error
        yield sample.finding(
            "plateau",
            (),
            {
                "first": series.start,
                "now": series.now,
                "progress": history.progress or 0.0,
                "gradient_norm": sample.total(GradientNorm),
                "learning_rate": rate,
            },
            _advice(sample, rate) if flat else "the loss has begun to fall",
            severity="warning" if flat and history.loss.count else "info",
        )


def _advice(sample: Sample, rate: float) -> str:
    turn = "Lower" if lost(sample) else "Raise"
    return (
        f"nothing is learned in {sample.step} steps. {turn} the learning rate from {rate:.3g} by tens until "
        "the loss moves; if it never does, try to fit a single batch, and look whether inputs and targets "
        "belong together"
    )
