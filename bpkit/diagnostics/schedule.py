"""`Schedule`: which steps are sampled, so that watching stays within its share of the time."""

from __future__ import annotations

import time
from collections import deque
from statistics import median

DENSE = 10  # the first steps, all sampled: where initialisation and rate show


class Schedule:
    """Every one of the first `DENSE` steps, then every `every`-th; doubled while that costs too much.

    The choice depends on the step's number alone, so that a resumed run, or another rank, takes the
    same samples as long as `every` is the same.

    Args:
        every: steps from one sample to the next, after the first ones.
        budget: share of the run's time that samples may take in the long run.
    """

    def __init__(self, every: int, budget: float) -> None:
        self.every, self.budget = every, budget
        self.seconds = 0.0
        self._costs: deque[float] = deque(maxlen=5)
        self._paces: deque[float] = deque(maxlen=5)
        self._last: tuple[int, float] | None = None

    def due(self, step: int) -> bool:
        """Whether this step is sampled."""
        return step <= DENSE or step % self.every == 0

    def took(self, step: int, seconds: float) -> None:
        """A sample of this step took so long; `every` doubles if such samples exceed the budget.

        Medians of five, so that one slow sample, or a pause between two, does not thin a run for good.
        """
        now = time.perf_counter()
        self.seconds += seconds
        self._costs.append(seconds)
        if self._last is not None and step > self._last[0]:
            self._paces.append((now - self._last[1] - seconds) / (step - self._last[0]))
        self._last = (step, now)
        if step >= DENSE and len(self._costs) == self._costs.maxlen and self._paces:
            while median(self._costs) > self.budget * self.every * median(self._paces) > 0:
                self.every *= 2
