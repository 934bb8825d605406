"""`Diagnostic`: what reads samples. One file each, written once, run under `watch` and in the Trainer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from bpkit.core.finding import Finding
from bpkit.diagnostics.instruments.instrument import Instrument
from bpkit.diagnostics.sample import Sample

if TYPE_CHECKING:
    from bpkit.diagnostics.watcher import Watcher


class Board(Protocol):
    """Where figures go: `bpkit.tensorboard.Writer`, or torch's `SummaryWriter`."""

    def add_scalar(self, tag: str, value: Any, step: int) -> None: ...
    def add_text(self, tag: str, text: str, step: int) -> None: ...
    def add_tensor(self, tag: str, tensor: object, step: int) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


class Diagnostic:
    """Base class: reads one sample after another, keeps what history it needs, and reports.

    A light sample, between two full ones, has the light instruments alone; it goes to the diagnostics whose
    `needs` are all light.

    Class attributes:
        needs: the instruments that it reads.
        wants: those that it reads where a sample has them.
    """

    needs: ClassVar[tuple[type[Instrument], ...]] = ()
    wants: ClassVar[tuple[type[Instrument], ...]] = ()

    def observe(self, sample: Sample) -> Iterable[Finding]:
        """The verdicts as of this sample. Each replaces the last of its kind, whose first step it keeps."""
        return ()

    def columns(self, sample: Sample) -> Mapping[str, Mapping[str, float]]:
        """Statistics of this sample by layer or module, for the map of layers × steps: by name, by layer."""
        return {}

    def write(self, sample: Sample, board: Board) -> None:
        """Put further figures of this sample on the board: few, for each tag is a chart in TensorBoard."""

    def attach(self, watcher: Watcher) -> None:
        """The watch begins; for a diagnostic that has to know the model or the logdir."""

    def close(self) -> Iterable[Finding]:
        """The watch is over: last verdicts."""
        return ()
