"""`Turns`: whose steps are the model's, where several optimizers have it, together or one after another."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from weakref import ReferenceType, WeakKeyDictionary, WeakSet, ref

from torch import nn
from torch.optim import Optimizer

logger = logging.getLogger("bpkit")

SOON = 5  # steps in a row of an optimizer that trains the same parameters, with none of the watched one, and
LATE = 50  # of one that trains others of the model's, until the watched one is taken to have ended
STRANGE = 50  # steps of one that has none of the model's, until it is looked at again: layers come and go
TURNS = 2  # times the longest turn that others have had so far: what steps in turn will be back


class Turns:
    """Tells the steps that count: those of one optimizer, until it has ended and another has its place.

    Args:
        parameters: gives the model's, as they are at the moment.
        first: the optimizer to begin with; None begins with the first one seen that holds one of them.
    """

    def __init__(
        self, parameters: Callable[[], Iterable[nn.Parameter]], first: Optimizer | None = None
    ) -> None:
        self._parameters = parameters
        self._current: ReferenceType[Optimizer] | None = None if first is None else ref(first)
        self._name = type(first).__name__
        self._passed: WeakKeyDictionary[Optimizer, int] = WeakKeyDictionary()  # steps since its last one
        self._patience: WeakKeyDictionary[Optimizer, tuple[int, int]] = WeakKeyDictionary()  # with groups
        self._former: WeakSet[Optimizer] = WeakSet()  # were followed before
        self._longest = 0
        self._row = self._phase = 0  # steps in a row of what is followed: now, and most so far

    def counts(self, optimizer: Optimizer) -> bool:
        """Whether this one's steps are counted at the moment."""
        return self._current is not None and self._current() is optimizer

    def begins(self, optimizer: Optimizer) -> bool:
        """A step begins: whether it is to be counted."""
        if self.counts(optimizer):
            if self._passed:
                self._longest = max(self._longest, *self._passed.values())
                self._passed.clear()
                self._row = 0
            self._stepped()
            return True
        patience = self._patience_with(optimizer)
        if patience <= 0:
            return False
        if optimizer in self._former:  # it had not ended: they have phases
            self._longest = max(self._longest, self._phase)
        passed = self._passed.get(optimizer, 0)
        current = None if self._current is None else self._current()
        if current is not None and passed < max(patience, TURNS * self._longest):
            self._passed[optimizer] = passed + 1
            return False
        self._follow(optimizer, current)
        self._row = passed
        self._stepped()
        return True

    def _stepped(self) -> None:
        self._row += 1
        self._phase = max(self._phase, self._row)

    def _follow(self, optimizer: Optimizer, current: Optimizer | None) -> None:
        name = type(optimizer).__name__
        if self._current is not None and optimizer not in self._former:
            logger.warning(
                "bpkit: the %s that was watched steps no more; the watch goes on with the %s in its place",
                self._name,
                name,
            )
        if current is not None:
            self._former.add(current)
        self._current, self._name = ref(optimizer), name
        self._passed.clear()
        self._patience.clear()

    def _patience_with(self, optimizer: Optimizer) -> int:
        """Steps until it is taken for the successor; of one that has nothing of the model's 0 or less."""
        groups = len(optimizer.param_groups)
        known, patience = self._patience.get(optimizer, (0, 0))
        if known != groups or patience == 0:
            patience = self._look_at(optimizer)
        elif patience < 0:
            patience += 1
        self._patience[optimizer] = groups, patience
        return patience

    def _look_at(self, optimizer: Optimizer) -> int:
        own = _ids(optimizer)
        if own.isdisjoint(map(id, self._parameters())):
            return -STRANGE
        current = None if self._current is None else self._current()
        return LATE if current is not None and own.isdisjoint(_ids(current)) else SOON


def _ids(optimizer: Optimizer) -> set[int]:
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
