"""`Turns`: whose steps are the model's, where several optimizers have it, together or one after another."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from weakref import ReferenceType, WeakKeyDictionary, ref

from torch import nn
from torch.optim import Optimizer

logger = logging.getLogger("bpkit")

SOON = 5  # steps in a row of an optimizer that trains the same parameters, with none of the watched one, and
LATE = 50  # of one that trains others of the model's, until the watched one is taken to have ended
TURNS = 2  # times the longest turn that others have had so far: what steps in turn will be back


class Turns:
    """Tells the steps that count: those of one optimizer, until it has ended and another has its place.

    Args:
        parameters: the model's, as they are at the moment.
        first: the optimizer to begin with; None begins with the first one seen that holds one of them.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], first: Optimizer | None = None) -> None:
        self._parameters = parameters
        self._current: ReferenceType[Optimizer] | None = None if first is None else ref(first)
        self._name = type(first).__name__
        self._passed: WeakKeyDictionary[Optimizer, int] = WeakKeyDictionary()  # steps since its last one
        self._patience: WeakKeyDictionary[Optimizer, tuple[int, int]] = WeakKeyDictionary()  # with groups
        self._longest = 0

    def counts(self, optimizer: Optimizer) -> bool:
        """Whether this one's steps are counted at the moment."""
        return self._current is not None and self._current() is optimizer

    def begins(self, optimizer: Optimizer) -> bool:
        """A step begins: whether it is to be counted."""
        if self.counts(optimizer):
            if self._passed:
                self._longest = max(self._longest, *self._passed.values())
                self._passed.clear()
            return True
        patience = self._patience_with(optimizer)
        if patience < 0:
            return False
        passed = self._passed.get(optimizer, 0)
        current = None if self._current is None else self._current()
        if current is not None and passed < max(patience, TURNS * self._longest):
            self._passed[optimizer] = passed + 1
            return False
        self._follow(optimizer)
        return True

    def _follow(self, optimizer: Optimizer) -> None:
        name = type(optimizer).__name__
        if self._current is not None:
            logger.warning(
                "bpkit: the %s that was watched steps no more; the watch goes on with the %s in its place",
                self._name,
                name,
            )
        self._current, self._name = ref(optimizer), name
        self._passed.clear()
        self._patience.clear()

    def _patience_with(self, optimizer: Optimizer) -> int:
        """Steps until it is taken for the successor; -1 for one that has nothing of the model's."""
        known = self._patience.get(optimizer)
        if known is not None and known[0] == len(optimizer.param_groups):
            return known[1]
        own = _ids(optimizer)
        patience = -1
        if not own.isdisjoint(map(id, self._parameters)):
            current = None if self._current is None else self._current()
            patience = LATE if current is not None and own.isdisjoint(_ids(current)) else SOON
        self._patience[optimizer] = (len(optimizer.param_groups), patience)
        return patience


def _ids(optimizer: Optimizer) -> set[int]:
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
