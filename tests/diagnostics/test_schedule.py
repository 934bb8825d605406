"""Ranks that sample together: whenever the first one thins, all of them do from the same step on."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from bpkit.diagnostics import schedule
from bpkit.diagnostics.ranks import Ranks
from bpkit.diagnostics.schedule import Schedule

pytestmark = pytest.mark.cpu


def ranks(store: Any, rank: int) -> Ranks:
    """As one of two processes has it that share `store`."""
    found = Ranks()
    found.rank, found.count, found._store, found._key = rank, 2, store, "bpkit/watch 1"
    return found


class Rank:
    """The schedules of full and light samples, asked and told in the order in which a watch does."""

    def __init__(self, ranks: Ranks, every: int, costs: random.Random | None) -> None:
        self.full = Schedule(every, 0.03, ranks)
        self.light = self.full.companion()
        self.full.clock = self.light.clock = lambda: float(self.step)
        self.costs, self.step, self.armed = costs, 0, self.full
        self.taken: list[tuple[int, str]] = []
        self.look_ahead()

    def look_ahead(self) -> None:
        self.armed = next((each for each in (self.full, self.light) if each.due(self.step + 1)), None)

    def run(self) -> None:
        """One step."""
        self.step += 1
        sampled = self.armed
        self.look_ahead()
        if sampled is not None:
            self.taken.append((self.step, "full" if sampled is self.full else "light"))
            dear = self.costs is not None and self.costs.random() < 0.7
            sampled.took(self.step, sampled.budget * sampled.every * 1.1 if dear else 0.0)


@pytest.mark.parametrize("every", [1, 2, 3, 10])
@pytest.mark.parametrize("leads_ahead", [False, True], ids=["behind", "ahead"])
@pytest.mark.parametrize("seed", range(3))
def test_the_others_follow(every: int, leads_ahead: bool, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first rank ends each step before the other does, or after it."""
    monkeypatch.setattr(schedule, "FIRST", 30)
    store = torch.distributed.HashStore()
    first = Rank(ranks(store, 0), every, random.Random(seed))
    other = Rank(ranks(store, 1), every, None)
    for step in range(2000):
        if leads_ahead:
            first.run()
        other.run()
        if not leads_ahead:
            first.run()
        assert first.taken == other.taken, step
    assert first.full.every >= 4 * every
    assert first.light.every > every
    assert other.full.every == first.full.every


def test_a_sample_costs_what_its_step_takes_longer_up_to_twice_the_time_in_its_hooks() -> None:
    now = 0.0
    timed = Schedule(10, 0.03)
    timed.use(lambda: now)
    pace = schedule.Pace(timed)
    assert pace.cost(0.25) == 0.25  # nothing is known yet
    for seconds in (1.0, 1.0, 9.0, 1.0):  # one with an evaluation
        pace.step(sampled=False)
        now += seconds
    pace.step(sampled=False)
    now += 1.1
    assert pace.cost(0.25) == 0.25
    now += 0.3
    assert pace.cost(0.25) == pytest.approx(0.4)
    now += 100
    assert pace.cost(0.25) == 0.5
    pace.step(sampled=True)
    now += 1.3
    assert pace.cost(0.25) == pytest.approx(0.3)  # the sampled step is none of the usual ones
