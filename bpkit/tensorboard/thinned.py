"""`Thinned`: a series of any length, kept in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

Value = TypeVar("Value")
MOST = 512


class Thinned(Generic[Value]):
    """Every n-th of the values that are added, and the last; n doubles whenever too many are held.

    A step that is not after the last one is that of a run resumed from a checkpoint: what the abandoned
    stretch had at that step and later is dropped.

    Args:
        most: values held, the last one aside.

    Attributes:
        count: values added, without those dropped.
    """

    def __init__(self, most: int = MOST) -> None:
        self.count = 0
        self._most, self._stride = most, 1
        self._kept: list[tuple[int, Value]] = []
        self._last: tuple[int, Value] | None = None

    def add(self, step: int, value: Value) -> None:
        """Append the value of a step."""
        if self._last is not None and step <= self._last[0]:
            self._drop(step)
        if self.count % self._stride == 0:
            self._kept.append((step, value))
            if len(self._kept) > self._most:
                self._kept = self._kept[::2]
                self._stride *= 2
        self.count += 1
        self._last = (step, value)

    def _drop(self, step: int) -> None:
        self._kept = [each for each in self._kept if each[0] < step]
        self.count = len(self._kept) * self._stride
        self._last = self._kept[-1] if self._kept else None

    @property
    def last(self) -> tuple[int, Value]:
        """The last step and its value. Raises IndexError where there is none."""
        if self._last is None:
            raise IndexError("nothing was added")
        return self._last

    def __iter__(self) -> Iterator[tuple[int, Value]]:
        """Steps, ascending, and their values."""
        yield from self._kept
        if self._last is not None and self._last[0] != self._kept[-1][0]:
            yield self._last

    def __len__(self) -> int:
        return sum(1 for _ in self)
