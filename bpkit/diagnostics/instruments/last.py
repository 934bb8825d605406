"""`Last`: what is known of the output of a module, for the next one that takes it as it is."""

from __future__ import annotations

from typing import Generic, TypeVar

from torch import Tensor

Known = TypeVar("Known")


class Last(Generic[Known]):
    """Remembers of one tensor what was found, as long as nobody writes over it.

    Of an output, for the input that it becomes: what a module gives is looked at anew, even where it is
    the tensor that it was given, for a kernel of one's own may write and not count it as a version.
    """

    def __init__(self) -> None:
        self._last: tuple[Tensor, int, Known] | None = None

    def set(self, tensor: Tensor, known: Known) -> None:
        """What is known of an output."""
        self._last = None if tensor.is_inference() else (tensor, tensor._version, known)

    def of(self, tensor: Tensor) -> Known | None:
        """The same if this is that output, as it was."""
        last = self._last
        return last[2] if last is not None and last[0] is tensor and last[1] == tensor._version else None
