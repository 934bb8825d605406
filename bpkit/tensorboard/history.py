"""`History`: what one run logged, its layouts merged into one table of layers × statistics by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bpkit.tensorboard.record import ABSENT, Layout, Verdicts

Array = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Part:
    """Samples of one layout.

    Attributes:
        layout: what rows and columns are.
        steps: of each sample.
        values: [layers × columns] of each sample.
    """

    layout: Layout
    steps: Sequence[int]
    values: Sequence[Array]


@dataclass(frozen=True, eq=False)
class History:
    """A run as TensorBoard holds it, which keeps some of the samples only.

    Attributes:
        layers: all that the run ever had, input first.
        classes: class name of each.
        columns: statistics.
        steps: [samples], ascending.
        values: [samples × layers × columns]; `ABSENT` where a value was not measured.
        histograms: by layer, the step and the counts in `record.BINS` that were logged last.
        verdicts: the last that were logged.
        problems: what could not be read, a line each.
    """

    layers: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    steps: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    values: Array = field(default_factory=lambda: np.zeros((0, 0, 0), np.float32))
    histograms: Mapping[str, tuple[int, Array]] = field(default_factory=dict)
    verdicts: Verdicts | None = None
    problems: tuple[str, ...] = ()

    def column(self, name: str) -> Array:
        """[layers × samples] of one statistic, all `ABSENT` where the run does not have it."""
        if name not in self.columns:
            return np.full((len(self.layers), len(self.steps)), ABSENT, np.float32)
        return self.values[:, :, self.columns.index(name)].T


def merged(
    parts: Sequence[Part],
    histograms: Sequence[Part] = (),
    verdicts: Verdicts | None = None,
    problems: Sequence[str] = (),
) -> History:
    """One history of samples in any number of layouts, the earliest layout first."""
    layers: list[str] = []
    classes: dict[str, str] = {}
    for part in reversed(parts):  # the order of the latest counts
        _insert(layers, part.layout.layers)
        for name, kind in zip(part.layout.layers, part.layout.classes, strict=False):
            classes.setdefault(name, kind)
    columns = tuple(dict.fromkeys(name for part in parts for name in part.layout.columns))
    samples: dict[int, Array] = {}
    for part in parts:
        spread = _spread(part.layout, layers, columns)
        for step, values in zip(part.steps, part.values, strict=True):
            samples[step] = spread(values)
    steps = sorted(samples)
    shape = (len(steps), len(layers), len(columns))
    return History(
        layers=tuple(layers),
        classes=tuple(classes.get(name, "") for name in layers),
        columns=columns,
        steps=np.asarray(steps, np.int64),
        values=np.stack([samples[step] for step in steps]) if steps else np.zeros(shape, np.float32),
        histograms={
            name: (part.steps[-1], row)
            for part in histograms
            if part.steps
            for name, row in zip(part.layout.layers, part.values[-1], strict=True)
        },
        verdicts=verdicts,
        problems=tuple(problems),
    )


def _spread(layout: Layout, layers: Sequence[str], columns: Sequence[str]) -> Callable[[Array], Array]:
    """What brings a sample of this layout to the rows and columns of the whole run."""
    if layout.layers == tuple(layers) and layout.columns == tuple(columns):
        return lambda values: values
    rows = {name: row for row, name in enumerate(layers)}
    places = {name: place for place, name in enumerate(columns)}
    where = np.ix_([rows[name] for name in layout.layers], [places[name] for name in layout.columns])

    def spread(values: Array) -> Array:
        whole = np.full((len(layers), len(columns)), ABSENT, np.float32)
        whole[where] = values
        return whole

    return spread


def _insert(known: list[str], names: Sequence[str]) -> None:
    """Add the names that are not known, each after the one that it follows."""
    places = {name: place for place, name in enumerate(known)}
    place = -1
    added: dict[int, list[str]] = {}
    for name in names:
        if name in places:
            place = places[name]
        else:
            places[name] = place
            added.setdefault(place, []).append(name)
    known[:] = [
        *added.get(-1, ()),
        *(each for place, name in enumerate(known) for each in (name, *added.get(place, ()))),
    ]
