"""`Schedule`: which steps are sampled, so that watching stays within its share of the time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from statistics import median

from bpkit.diagnostics.ranks import Ranks

DENSE = 10  # the first steps, all sampled: where initialisation and rate show
MOST = 2.0  # times what a sample takes in its hooks, that it takes in all
FIRST = 200  # steps that are sampled as asked, whatever it costs: a budget is a share of a long run


class Schedule:
    """Every one of the first `DENSE` steps, then every `every`-th; after `FIRST` fewer, if that costs much.

    `every` doubles until the samples fit the budget. The choice depends on the step's number alone, so that a
    resumed run, or another rank, takes the same samples as long as `every` is the same. Of several ranks
    the first one decides when it changes.

    Args:
        every: steps from one sample to the next, after the first ones.
        budget: share of the run's time that samples may take in the long run.
        ranks: the processes that train together.

    Attributes:
        clock: seconds that the run has had; a run that takes turns with others leaves theirs out.
    """

    def __init__(self, every: int, budget: float, ranks: Ranks | None = None) -> None:
        self._asked = self.every = every
        self.budget = budget
        self.clock = time.perf_counter
        self.seconds = 0.0
        self.samples = 0
        self._ranks = ranks or Ranks()
        self._pending: tuple[int, int] | None = None  # from which step on, every how many
        self._costs: deque[float] = deque(maxlen=5)
        self._paces: deque[float] = deque(maxlen=5)
        self._last: tuple[int, float] | None = None
        self._listened = 0  # the step before which this rank last asked what the first one has said
        self._began = self.clock()

    def use(self, clock: Callable[[], float]) -> None:
        """Tell the time by another clock, from now on."""
        self.clock = clock
        self._began = clock()

    def companion(self) -> Schedule:
        """A schedule for light samples, with a third of the budget; this one keeps the rest."""
        light = Schedule(self.every, self.budget / 3, self._ranks.companion())
        self.budget -= light.budget
        return light

    @property
    def share(self) -> float:
        """The part of the time since the watch began that it took itself."""
        return self.seconds / max(self.clock() - self._began, 1e-9)

    def due(self, step: int) -> bool:
        """Whether this step is sampled."""
        self._follow(step)
        return step <= DENSE or step % (self._asked if step <= FIRST else self.every) == 0

    def took(self, step: int, seconds: float) -> None:
        """A sample of this step took so long; `every` doubles if such samples exceed the budget.

        Medians of five, so that one slow sample, or a pause between two, does not thin a run for good.
        """
        now = self.clock()
        self.seconds += seconds
        self.samples += 1
        self._costs.append(seconds)
        if self._last is not None and step > self._last[0]:
            self._paces.append((now - self._last[1] - seconds) / (step - self._last[0]))
        self._last = (step, now)
        if not self._ranks.leads:
            return
        every = self.every
        if step >= DENSE and len(self._costs) == self._costs.maxlen and self._paces:
            while median(self._costs) > self.budget * every * median(self._paces) > 0:
                every *= 2
        if every != self.every and self._pending is None:
            # By then the others have asked: they may be a step ahead, and miss one that is not theirs.
            since = step + 1 if self._ranks.alone else step + self.every + 4
            self._pending = (since, every)
            self._ranks.say(since, every)

    def _follow(self, step: int) -> None:
        """Change what counts from this step on; ranks that follow ask every `every` steps, sampled or not."""
        if self._pending is not None and step >= self._pending[0]:
            self.every, self._pending = self._pending[1], None
        if not self._ranks.leads and not 0 <= step - self._listened < self.every:
            self._listened = step
            self._pending = self._ranks.heard() or self._pending


class Pace:
    """How much longer sampled steps take than the others: more than what clocks around the hooks show.

    The graph is walked, memory is asked for, caches are cold. But a step can be long for reasons of its own,
    such as an evaluation, so that no more than `MOST` times the time in the hooks is laid to the sample.

    Args:
        schedule: whose clock it is.
    """

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._usual: deque[float] = deque(maxlen=9)
        self._end: float | None = None

    def cost(self, seconds: float) -> float:
        """What the sample of the step that ends took, which took so many seconds in the hooks."""
        if self._end is None or not self._usual:
            return seconds
        longer = self._schedule.clock() - self._end - median(self._usual)
        return min(max(seconds, longer), MOST * seconds)

    def step(self, *, sampled: bool) -> None:
        """A step has ended, and what was to be done at its end."""
        now = self._schedule.clock()
        if self._end is not None and not sampled:
            self._usual.append(now - self._end)
        self._end = now
