"""`Held`: values made once, and made again when what they were made of has another version."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Value = TypeVar("Value")


@dataclass
class _Slot(Generic[Value]):
    lock: threading.Lock = field(default_factory=threading.Lock)
    made: tuple[str, Value] | None = None  # the version, and what was made of it


class Held(Generic[Value]):
    """The latest version of each value; those least asked for go first.

    TensorBoard answers each request on a thread of its own: several that ask for one value at once wait for
    one making of it, and those that ask for others do not wait.

    Args:
        most: values held.
    """

    def __init__(self, most: int = 10_000) -> None:
        self._most = most
        self._slots: OrderedDict[Hashable, _Slot[Value]] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, key: Hashable, version: str) -> Value | None:
        """The value of this version, None where `get` would make it."""
        made = self._slot(key).made
        return made[1] if made is not None and made[0] == version else None

    def get(self, key: Hashable, version: str, make: Callable[[], Value]) -> Value:
        """The value of this version, made unless it is held. What `make` raises is passed on."""
        slot = self._slot(key)
        with slot.lock:
            if slot.made is None or slot.made[0] != version:
                slot.made = (version, make())
            return slot.made[1]

    def _slot(self, key: Hashable) -> _Slot[Value]:
        with self._lock:
            slot = self._slots.setdefault(key, _Slot())
            self._slots.move_to_end(key)
            while len(self._slots) > self._most:
                self._slots.popitem(last=False)
        return slot
