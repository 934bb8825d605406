"""`History`: samples of one run, of any number of layouts, looked at by statistic or by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bpkit.tensorboard.record import ABSENT, Layout

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


class Sample(NamedTuple):
    """Values as they were logged, and where they belong in the whole run.

    Attributes:
        rows: place of each of its layers among all.
        columns: place of each of its statistics among its own.
        values: [layers × columns].
    """

    rows: NDArray[np.int64]
    columns: Mapping[str, int]
    values: Array


@dataclass(frozen=True, eq=False)
class History:
    """A run as TensorBoard holds it, which keeps some of the samples only.

    The samples stay as they were read: a map shows one statistic of fifteen, and to bring all of them into
    one array first would take most of the time until it is seen.

    Attributes:
        layers: all that the run ever had, input first.
        classes: class name of each.
        columns: statistics.
        steps: [samples], ascending.
        samples: one a step.
        problems: what could not be read, a line each.
    """

    layers: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    steps: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    samples: Sequence[Sample] = ()
    problems: tuple[str, ...] = ()

    def column(self, name: str) -> Array:
        """[layers × samples] of one statistic; `ABSENT` where it was not measured."""
        found = np.full((len(self.samples), len(self.layers)), ABSENT, np.float32)
        for each, (rows, columns, values) in zip(found, self.samples, strict=True):
            if name in columns:
                each[rows] = values[:, columns[name]]
        return found.T

    def row(self, name: str) -> Array:
        """[columns × samples] of one layer; `ABSENT` where a statistic was not measured."""
        place = self.layers.index(name)
        found = np.full((len(self.samples), len(self.columns)), ABSENT, np.float32)
        for each, (rows, columns, values) in zip(found, self.samples, strict=True):
            (own,) = np.nonzero(rows == place)
            if own.size:
                each[[self.columns.index(column) for column in columns]] = values[own[0]]
        return found.T


def merged(parts: Sequence[Part], problems: Sequence[str] = ()) -> History:
    """One history of samples in any number of layouts, the earliest layout first."""
    layers: list[str] = []
    classes: dict[str, str] = {}
    for part in reversed(parts):  # the order of the latest counts
        _insert(layers, part.layout.layers)
        for name, kind in zip(part.layout.layers, part.layout.classes, strict=False):
            classes.setdefault(name, kind)
    places = {name: place for place, name in enumerate(layers)}
    samples: dict[int, Sample] = {}
    for part in parts:
        rows = np.array([places[name] for name in part.layout.layers], np.int64)
        columns = {name: place for place, name in enumerate(part.layout.columns)}
        for step, values in zip(part.steps, part.values, strict=True):
            samples[step] = Sample(rows, columns, values)
    steps = sorted(samples)
    return History(
        layers=tuple(layers),
        classes=tuple(classes.get(name, "") for name in layers),
        columns=tuple(dict.fromkeys(name for part in parts for name in part.layout.columns)),
        steps=np.asarray(steps, np.int64),
        samples=[samples[step] for step in steps],
        problems=tuple(problems),
    )


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
