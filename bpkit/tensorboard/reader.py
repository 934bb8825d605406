"""`runs`: what `watch` wrote below a directory, read back in bounded memory, without torch.

One run a directory that holds event files, as TensorBoard has it. Files of a run are read in the order
of their names, which begin with the time of their start: a run that was resumed is one run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]
from tensorboard.util.tensor_util import make_ndarray  # type: ignore[import-untyped]

from bpkit.core.errors import BpkitError
from bpkit.tensorboard.events import events, is_events
from bpkit.tensorboard.record import FINDINGS, HISTOGRAMS, LAYERS, Layout, Verdicts
from bpkit.tensorboard.thinned import Thinned

Array = NDArray[np.float32]
LOSSES = {"loss/train": "train", "loss/validation": "validation"}
_TAGS = 1000  # names of scalars that are remembered, for who looks for bpkit's and finds others'


@dataclass(eq=False)
class Series:
    """Samples of one layout.

    Attributes:
        layout: what rows and columns are.
        samples: [layers × columns] by step, thinned.
    """

    layout: Layout
    samples: Thinned[Array] = field(default_factory=Thinned)

    def column(self, name: str) -> Thinned[Array] | None:
        """One statistic of all layers by step, or None where it was not measured."""
        if name not in self.layout.columns:
            return None
        index = self.layout.columns.index(name)
        found: Thinned[Array] = Thinned()
        for step, values in self.samples:
            found.add(step, values[:, index])
        return found


@dataclass
class Run:
    """What one directory's event files say.

    Attributes:
        name: its path below the directory that was asked for, "." for that itself.
        series: samples, one series a layout, in the order in which the layouts came.
        histograms: the last counts by layer, [layers × bins], one series a layout.
        verdicts: the last that was written; None until there is one.
        losses: "train" and "validation", as far as they were logged.
        tags: names of all that was found.
        started: time of the first event, in seconds since the epoch; 0 without events.
        written: time of the last event.
        gap: the longest time between two events of one file.
        finished: the watch was closed, and nothing came after.
    """

    name: str
    series: list[Series] = field(default_factory=list)
    histograms: list[Series] = field(default_factory=list)
    verdicts: Verdicts | None = None
    losses: dict[str, Thinned[float]] = field(default_factory=dict)
    tags: set[str] = field(default_factory=set)
    started: float = 0.0
    written: float = 0.0
    gap: float = 0.0
    finished: bool = False

    @property
    def watched(self) -> bool:
        """Whether a watch has written anything."""
        return bool(self.series) or self.verdicts is not None

    @property
    def step(self) -> int:
        """The last step that is known of."""
        sampled = max((each.samples.last[0] for each in self.series), default=0)
        return max(sampled, self.verdicts.step if self.verdicts else 0)

    @property
    def sampled(self) -> int:
        """Steps that were sampled."""
        counted = sum(each.samples.count for each in self.series)
        return max(counted, self.verdicts.samples if self.verdicts else 0)


def runs(root: Path) -> Iterator[Run]:
    """The runs below a directory, by name, each read when it is asked for.

    Raises:
        BpkitError: a file that cannot be read, or that a later bpkit wrote.
    """
    places: dict[Path, list[Path]] = {}
    for path in sorted(root.rglob("*")):
        if is_events(path) and path.is_file():
            places.setdefault(path.parent, []).append(path)
    for place, files in sorted(places.items()):
        yield _run(str(place.relative_to(root)), files)


def _run(name: str, files: list[Path]) -> Run:
    reading = _Reading(Run(name))
    for path in files:
        try:
            reading.file(path)
        except OSError as error:
            raise BpkitError(f"{path} cannot be read: {error.strerror or error}") from error
        except ValueError as error:
            raise BpkitError(f"{path}: {error}; a newer bpkit may read it") from error
    return reading.run


class _Reading:
    """A run as far as it was read, and under which tag which series goes on."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._open: dict[str, Series] = {}

    def file(self, path: Path) -> None:
        run, before = self.run, None
        for event in events(path):
            run.started = run.started or event.wall_time
            run.gap = max(run.gap, event.wall_time - (before or event.wall_time))
            run.written = max(run.written, event.wall_time)
            before = event.wall_time
            self._event(event)

    def _event(self, event: Event) -> None:
        for value in event.summary.value:
            tag, content = value.tag, value.metadata.plugin_data.content
            if len(self.run.tags) < _TAGS:
                self.run.tags.add(tag)
            if _under(tag, LAYERS):
                self._tensor(self.run.series, tag, content, event.step, value.tensor)
                self.run.finished = False
            elif _under(tag, HISTOGRAMS):
                self._tensor(self.run.histograms, tag, content, event.step, value.tensor, most=1)
            elif tag == FINDINGS:
                self.run.verdicts = Verdicts.from_json(_text(value.tensor))
                self.run.finished = self.run.verdicts.finished
            elif tag in LOSSES:
                number = _number(value)
                if number is not None:
                    self.run.losses.setdefault(LOSSES[tag], Thinned()).add(event.step, number)

    def _tensor(
        self, known: list[Series], tag: str, content: bytes, step: int, tensor: Any, **bound: int
    ) -> None:
        if content:  # the first of its tag in a file
            layout = Layout.from_json(content)
            goes_on = next((each for each in known if each.layout == layout), None)
            self._open[tag] = goes_on or Series(layout, Thinned(**bound))
        if tag not in self._open:
            return  # its first value was lost, and with it what it means
        series = self._open[tag]
        values = make_ndarray(tensor)
        if values.shape == (len(series.layout.layers), len(series.layout.columns)):
            series.samples.add(step, values)
            if series not in known:
                known.append(series)


def _under(tag: str, name: str) -> bool:
    return tag == name or tag.startswith(f"{name}/")


def _text(tensor: Any) -> bytes:
    (text,) = make_ndarray(tensor).reshape(-1)  # ValueError for anything but one
    return bytes(text)


def _number(value: Any) -> float | None:
    """A scalar of any writer's: TensorFlow's and newer ones write a tensor. None for anything else."""
    if value.HasField("simple_value"):
        return float(value.simple_value)
    if not value.HasField("tensor"):
        return None
    array = make_ndarray(value.tensor)
    return float(array.item()) if array.size == 1 and array.dtype.kind in "fiu" else None
