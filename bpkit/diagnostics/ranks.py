"""`Ranks`: the processes of a distributed run, as far as watching has to know of them.

A message goes through the store that `torch.distributed` was set up with, which never waits for a rank that
does not watch; a collective would.
"""

from __future__ import annotations

import copy
from typing import Any

import torch


class Ranks:
    """This process among those that train together; alone where nothing is distributed.

    Attributes:
        rank: number of this process.
        count: how many there are.
    """

    def __init__(self) -> None:
        self.rank, self.count = 0, 1
        self._store: Any = None
        self._changes = 0
        self.count = self.processes()
        if self.count > 1:
            self.rank = torch.distributed.get_rank()
            self._store = torch.distributed.distributed_c10d._get_default_store()
            number = self._store.add(_begun(self.rank), 1)
            self._key = f"bpkit/watch {number}"  # the same number on every rank that watches

    def companion(self) -> Ranks:
        """The same ranks, for another series of changes."""
        other = copy.copy(self)
        if other._store is not None:
            other._key += " light"
        return other

    @property
    def alone(self) -> bool:
        return self._store is None

    @property
    def leads(self) -> bool:
        """Whether this one decides which steps are sampled, and writes the logs."""
        return self.rank == 0

    @staticmethod
    def processes() -> int:
        """How many train together."""
        ranks = torch.distributed
        return ranks.get_world_size() if ranks.is_available() and ranks.is_initialized() else 1

    @staticmethod
    def others_watch() -> bool:
        """Whether every rank has begun as many watches as this one."""
        count = Ranks.processes()
        if count == 1:
            return True
        store = torch.distributed.distributed_c10d._get_default_store()
        begun = [store.add(_begun(rank), 0) for rank in range(count)]
        return min(begun) == begun[torch.distributed.get_rank()]

    def say(self, since: int, every: int) -> None:
        """Tell the others from which step on every how many steps are sampled."""
        if self._store is not None:
            self._changes += 1
            self._store.set(f"{self._key} change {self._changes}", f"{since} {every}")

    def heard(self) -> tuple[int, int] | None:
        """What the first rank has said since this was last asked, if it has."""
        if self._store is None or not self._store.check([f"{self._key} change {self._changes + 1}"]):
            return None
        self._changes += 1
        since, every = self._store.get(f"{self._key} change {self._changes}").split()
        return int(since), int(every)


def _begun(rank: int) -> str:
    """Where the store counts the watches of a rank."""
    return f"bpkit/watches of rank {rank}"
