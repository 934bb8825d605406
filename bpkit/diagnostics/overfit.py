"""Overfit: the loss on data that is not trained on rises, or stays far behind, while the training loss falls.

Needs `watcher.validation(loss)`, the same loss as is trained on. The gap is measured in what the validation
loss was at the start, so that it means the same for any loss; a gap that the run had from the start
(dropout, label smoothing, augmentation in training only) is taken off it.
"""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median

from bpkit.core.finding import Finding
from bpkit.diagnostics.diagnostic import Board, Diagnostic
from bpkit.diagnostics.sample import Sample

EVALUATIONS = 4
RISEN = 0.1  # of the first validation loss, above its best
GAP = 0.3  # of the first validation loss, between the two
FITTED = 0.7  # progress of the training loss from which a wide gap alone is a verdict


class Overfit(Diagnostic):
    """The two losses come apart."""

    def __init__(self) -> None:
        self._pairs: list[tuple[int, float, float]] = []  # step, training loss around it, validation loss

    def observe(self, sample: Sample) -> Iterable[Finding]:
        """A finding once the last two evaluations agree."""
        history = sample.history
        if not sample.validations or not history.loss.count:
            return
        for step, value in sample.validations:
            if value == value:
                self._pairs.append((step, history.loss.now, value))
        if len(self._pairs) > 256:
            lowest = min(self._pairs, key=lambda pair: pair[2])
            self._pairs = sorted({*self._pairs[:1], *self._pairs[2::2], *self._pairs[-2:], lowest})
        if len(self._pairs) < EVALUATIONS:
            return
        first = max(abs(self._pairs[0][2]), 1e-12)
        best = min(range(len(self._pairs)), key=lambda place: self._pairs[place][2])
        now = min(value for _, _, value in self._pairs[-2:])  # both have to be up
        train = median(loss for _, loss, _ in self._pairs[-2:])
        risen = (now - self._pairs[best][2]) / first
        gap = (now - train) / first - max(0.0, (self._pairs[0][2] - self._pairs[0][1]) / first)
        progress = history.progress or 0.0
        rises = risen > RISEN and train < self._pairs[best][1] and best < len(self._pairs) - 2
        behind = gap > GAP and progress > FITTED
        if not (rises or behind):
            return
        yield sample.finding(
            "overfit",
            (),
            {
                "validation": now,
                "validation_best": self._pairs[best][2],
                "train": train,
                "gap_over_first_loss": gap,
                "step_of_best": float(self._pairs[best][0]),
            },
            f"the validation loss was best at step {self._pairs[best][0]}. Stop there, regularise (weight "
            "decay, dropout, augmentation, a smaller model), or get more data",
        )

    def write(self, sample: Sample, board: Board) -> None:
        """`loss/validation over train`, with each evaluation."""
        if self._pairs and sample.validations and self._pairs[-1][1] > 0:
            ratio = self._pairs[-1][2] / self._pairs[-1][1]
            board.add_scalar("loss/validation over train", ratio, sample.step)
