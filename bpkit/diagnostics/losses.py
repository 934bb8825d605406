"""`Losses`: what a watch is given between two samples, and reads with the next, waiting for no device."""

from __future__ import annotations

from collections import deque

from torch import Tensor

from bpkit.core.errors import BpkitError
from bpkit.diagnostics.shards import local

PENDING = 1024  # that wait for the next sample, at most

Given = tuple[tuple[int, Tensor | float], ...]


class Losses:
    """Training and validation losses with their steps, since the last sample."""

    def __init__(self) -> None:
        self._train: deque[tuple[int, Tensor | float]] = deque(maxlen=PENDING)
        self._validation: deque[tuple[int, Tensor | float]] = deque(maxlen=PENDING)

    def add(self, step: int, value: Tensor | float) -> None:
        """A training loss; raises BpkitError for what is not one number."""
        self._train.append((step, _given("loss", value)))

    def add_validation(self, step: int, value: Tensor | float) -> None:
        """A loss on data that is not trained on; raises BpkitError for what is not one number."""
        self._validation.append((step, _given("validation", value)))

    @property
    def full(self) -> bool:
        """Whether the next training loss would push one out."""
        return len(self._train) == PENDING

    def take(self) -> tuple[Given, Given]:
        """Both, which are given up."""
        taken = tuple(self._train), tuple(self._validation)
        self._train.clear()
        self._validation.clear()
        return taken


def _given(name: str, value: Tensor | float) -> Tensor | float:
    """A loss as it is now: what is written over it later is another."""
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise BpkitError(f"watcher.{name}: one number, not a tensor of shape {tuple(value.shape)}")
        return local(value.detach()).reshape(()).clone()
    try:
        return float(value)
    except (TypeError, ValueError):
        raise BpkitError(f"watcher.{name}: a number or a tensor of one, not {value!r}") from None
