"""`Diagnostic`: what reads samples. One file each, written once, run under `watch` and in the Trainer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Protocol

from bpkit.diagnostics.finding import Finding
from bpkit.diagnostics.instruments import Instrument
from bpkit.diagnostics.sample import Sample


class Board(Protocol):
    """Where figures go: `bpkit.tensorboard.Writer`, or torch's `SummaryWriter`."""

    def add_scalar(self, tag: str, value: float, step: int) -> None: ...
    def add_text(self, tag: str, text: str, step: int) -> None: ...
    def add_tensor(self, tag: str, tensor: object, step: int) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


class Diagnostic:
    """Base class: reads one sample after another, keeps what history it needs, and reports.

    Class attributes:
        needs: the instruments that it reads.
    """

    needs: ClassVar[tuple[type[Instrument], ...]] = ()

    def observe(self, sample: Sample) -> Iterable[Finding]:
        """The verdicts as of this sample. Each replaces the last of its kind, whose first step it keeps."""
        return ()

    def write(self, sample: Sample, board: Board) -> None:
        """Put this sample's figures on the board, if it has any of its own."""
