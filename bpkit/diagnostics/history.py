"""`History`: the losses of a run, and whether it gets anywhere.

Verdicts weigh what they see against this: small gradients are a fault where nothing is learned, and the end
of a good run where much was. Memory is bounded: means over blocks of steps, whose length doubles.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from math import isfinite, sqrt
from statistics import fmean, median

BLOCKS = 256
RECENT = 64
START = 10  # losses that stand for the start of a run
BLOWN = 2.0


@dataclass
class Series:
    """Values over steps: the first ones, the last ones, and means over blocks between."""

    first: list[float] = field(default_factory=list)
    recent: list[tuple[int, float]] = field(default_factory=list)
    blocks: list[tuple[int, float]] = field(default_factory=list)
    count: int = 0
    size: int = 1
    _gathering: list[float] = field(default_factory=list, repr=False)

    def add(self, step: int, value: float) -> None:
        """One more value; what is not finite is counted nowhere."""
        if not isfinite(value):
            return
        self.count += 1
        if len(self.first) < START:
            self.first.append(value)
        self.recent.append((step, value))
        del self.recent[:-RECENT]
        self._gathering.append(value)
        if len(self._gathering) >= self.size:
            self.blocks.append((step, fmean(self._gathering)))
            self._gathering = []
        if len(self.blocks) >= BLOCKS:
            pairs = zip(self.blocks[::2], self.blocks[1::2], strict=True)
            self.blocks = [(later[0], (earlier[1] + later[1]) / 2) for earlier, later in pairs]
            self.size *= 2

    @property
    def start(self) -> float:
        """Median of the first values: one bad batch does not move it. The very first, where they blew up."""
        return self.first[0] if self.blew_up else median(self.first)

    @property
    def blew_up(self) -> bool:
        """Whether the first steps multiplied a positive value."""
        return len(self.first) >= START and self.first[0] > 0 and median(self.first) > BLOWN * self.first[0]

    @property
    def now(self) -> float:
        """Median of the last quarter of what there is, of sixteen values at most."""
        last = self.recent[-max(1, min(16, self.count // 4)) :]
        return median(value for _, value in last)

    @property
    def best(self) -> float:
        """The lowest that a median of three neighbouring blocks has been, or the lowest value of few."""
        values = [value for _, value in self.blocks]
        if len(values) < 3:
            return min(values, default=self.first[0] if self.first else 0.0)
        return min(median(values[place : place + 3]) for place in range(len(values) - 2))

    @property
    def noise(self) -> float:
        """Standard deviation of a value around its trend: 1.48 times the median difference of two, ÷ √2."""
        values = [value for _, value in self.recent]
        steps = [abs(b - a) for a, b in pairwise(values)]
        return 1.4826 * median(steps) / sqrt(2) if steps else 0.0


@dataclass
class History:
    """What is known of the run as a whole.

    Attributes:
        loss: the training losses that were given.
        validation: the validation losses that were given.
        error: size of ∂L/∂output, from sampled steps: falls as the loss does, for most losses, and is there
            where no loss is given.
        alone: no other network is known to train on the same loss, or to feed this one: an adversary's
            progress is this one's loss.
    """

    loss: Series = field(default_factory=Series)
    validation: Series = field(default_factory=Series)
    error: Series = field(default_factory=Series)
    alone: bool = True

    def add_losses(self, losses: Iterable[tuple[int, float]]) -> None:
        """The losses given since the last sample."""
        for step, value in losses:
            self.loss.add(step, value)

    @property
    def progress(self) -> float | None:
        """How much of its first value the loss, or else the error at the output, has lost; None: unknown.

        0 where nothing is learned, near 1 where nearly all is; negative where it grew. A loss that starts
        below zero, or at it, is measured in its first spread instead.
        """
        series = self.loss if self.loss.count else self.error
        if series.count < START:
            return None
        scale = abs(series.start)
        return (series.start - series.now) / scale if scale > 0 else 0.0
