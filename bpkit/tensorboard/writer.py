"""`Writer`: scalars, text and tensors for TensorBoard, one record a step, written by a thread.

The methods are named as in `torch.utils.tensorboard.SummaryWriter`, which imports slowly, writes one
record a value and blocks on every flush; whoever takes a writer takes either.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR, Summary, SummaryMetadata  # type: ignore[import-untyped]
from tensorboard.summary.writer.event_file_writer import EventFileWriter  # type: ignore[import-untyped]
from tensorboard.util.tensor_util import make_tensor_proto  # type: ignore[import-untyped]

from bpkit.core.errors import BpkitError

logger = logging.getLogger("bpkit")


class Writer:
    """Writes an event file in `logdir`, which is made if it is not there.

    Values of one step are gathered into one record; a record is handed to the writing thread when
    the next step's first value arrives, or on `flush`. A disk that fills up, or goes away, ends the
    writing with one line on the `bpkit` logger: what is monitored goes on.

    Args:
        logdir: directory of the run.
        flush_seconds: the longest that a record handed over stays unwritten.

    Raises:
        BpkitError: `logdir` is a file, or cannot be written to.
    """

    def __init__(self, logdir: str | Path, *, flush_seconds: float = 10.0) -> None:
        if not isinstance(logdir, (str, Path)):
            raise BpkitError(f"logdir must be a path, not {logdir!r}")
        self.logdir = Path(logdir)
        try:
            self.logdir.mkdir(parents=True, exist_ok=True)
            self._file: EventFileWriter | None = EventFileWriter(
                str(self.logdir), max_queue_size=1000, flush_secs=flush_seconds
            )
        except (OSError, ValueError) as error:  # ValueError: a path with a null byte
            reason = getattr(error, "strerror", None) or error
            raise BpkitError(f"cannot write to logdir {str(logdir)!r}: {reason}; name a directory") from error
        self._step = 0
        self._summary = Summary()
        self._described: set[str] = set()

    def add_scalar(self, tag: str, value: Any, step: int) -> None:
        """One number; a 0-d tensor is read at once, which waits for its device."""
        self._at(step).value.add(tag=tag, simple_value=float(value))

    def add_text(self, tag: str, text: str, step: int) -> None:
        """Markdown, shown on the Text tab."""
        value = self._at(step).value.add(tag=tag, tensor=make_tensor_proto([text]))
        value.metadata.CopyFrom(_metadata("text"))

    def add_tensor(
        self, tag: str, tensor: Any, step: int, *, plugin: str = "bpkit", content: str = ""
    ) -> None:
        """An array as float32, kept whole for the plugin of that name.

        Args:
            tag: its name.
            tensor: anything that `numpy.asarray` takes (a tensor on the CPU, nested lists).
            step: the step that it belongs to.
            plugin: the TensorBoard plugin that shows it.
            content: what that plugin needs to know to read it; written once a tag.
        """
        with np.errstate(over="ignore"):  # what float32 cannot hold is infinite
            array = np.asarray(tensor, dtype=np.float32)
        value = self._at(step).value.add(tag=tag, tensor=make_tensor_proto(array))
        if tag not in self._described:  # TensorBoard reads a tag's metadata off its first value
            self._described.add(tag)
            value.metadata.CopyFrom(_metadata(plugin, content))

    def add_record(self, tag: str, text: str, step: int) -> None:
        """Text that is data, such as JSON, for bpkit's plugin."""
        value = self._at(step).value.add(tag=tag, tensor=make_tensor_proto([text]))
        value.metadata.CopyFrom(_metadata("bpkit"))

    def flush(self) -> None:
        """Hand over what was gathered and wait until it is on disk."""
        self._emit()
        self._try(lambda file: file.flush())

    def close(self) -> None:
        """Write what is left and end the thread; what is added afterwards is dropped."""
        self._emit()
        self._try(lambda file: file.close())
        self._file = None

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _at(self, step: int) -> Summary:
        """The record of this step, the last step's handed over first."""
        if step != self._step:
            self._emit()
            self._step = step
        return self._summary

    def _emit(self) -> None:
        if not self._summary.value:
            return
        event = Event(wall_time=time.time(), step=self._step, summary=self._summary)
        self._summary = Summary()
        self._try(lambda file: file.add_event(event))

    def _try(self, action: Any) -> None:
        if self._file is None:
            return
        try:
            action(self._file)
        except (OSError, ValueError) as error:  # ValueError: the thread closed a file it could not write
            self._file = None
            logger.warning("bpkit: no more TensorBoard logs for %s: %s", self.logdir, error)


def _metadata(plugin: str, content: str = "") -> SummaryMetadata:
    """`DATA_CLASS_TENSOR`, without which TensorBoard keeps a tensor from every reader."""
    data = SummaryMetadata.PluginData(plugin_name=plugin, content=content.encode())
    return SummaryMetadata(plugin_data=data, data_class=DATA_CLASS_TENSOR)
