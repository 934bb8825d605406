"""`cells`: a statistic of many layers over many samples, as no more cells than a picture has room for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bpkit.tensorboard.record import ABSENT

Array = NDArray[np.float32]
Scale = Literal["share", "signed", "log"]

SHARES = frozenset({"dead", "saturated", "silent", "zeros"})  # parts of a whole, from 0 to 1


@dataclass(frozen=True, eq=False)
class Cells:
    """A picture of a statistic.

    Attributes:
        scale: `"share"` from 0 to 1, `"log"` of what is never negative, `"signed"` otherwise.
        rows: [rows + 1] where each row begins among the layers, and the end.
        columns: [columns + 1] the same among the samples.
        values: [rows × columns]. NaN and infinity stand for themselves, `ABSENT` for nothing.
    """

    scale: Scale
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    values: Array

    @property
    def range(self) -> tuple[float, float] | None:
        """The least and the largest value that the scale can show, None without one."""
        shown = self.values[_finite(self.values) & ((self.values > 0) | (self.scale != "log"))]
        return (float(shown.min()), float(shown.max())) if shown.size else None


def scale(name: str, values: Array) -> Scale:
    """How a statistic of that name is to be shown."""
    if name in SHARES:
        return "share"
    return "signed" if bool((_finite(values) & (values < 0)).any()) else "log"


def cells(name: str, values: Array, rows: int, columns: int) -> Cells:
    """Bins of `values`, [layers × samples], in at most that many rows and columns.

    A bin that has a NaN is NaN, one that has an infinity is infinite: what is rare and grave must not
    be averaged away. For the same reason a bin of shares has the largest. Others have the mean, a
    geometric one on a log scale.
    """
    how = scale(name, values)
    below, beside = _edges(values.shape[0], rows), _edges(values.shape[1], columns)
    if values.size and (len(below) <= values.shape[0] or len(beside) <= values.shape[1]):
        values = _binned(how, values, below[:-1], beside[:-1])
    return Cells(how, below, beside, np.ascontiguousarray(values, np.float32))


def _binned(how: Scale, values: Array, below: NDArray[np.int64], beside: NDArray[np.int64]) -> Array:
    def over(ufunc: np.ufunc, each: NDArray[np.generic]) -> NDArray[np.float64]:
        # The longer axis last: what the second pass has to go through is short by then.
        first = ufunc.reduceat(each.astype(np.float64), below, axis=0)
        return np.asarray(ufunc.reduceat(first, beside, axis=1))

    finite = _finite(values)
    counted = finite & (values > 0) if how == "log" else finite
    with np.errstate(all="ignore"):
        if how == "share":
            found = over(np.maximum, np.where(counted, values, -np.inf))
        elif how == "log":
            total = over(np.add, np.log(np.where(counted, values, 1), dtype=np.float64))
            found = np.exp(total / over(np.add, counted))
        else:
            found = over(np.add, np.where(counted, values, 0)) / over(np.add, counted)
    found = np.where(over(np.add, counted) > 0, found, np.where(over(np.add, finite) > 0, 0, ABSENT))
    found = np.where(over(np.add, np.isinf(values)) > 0, np.inf, found)
    return np.where(over(np.add, np.isnan(values)) > 0, np.nan, found).astype(np.float32)


def _finite(values: Array) -> NDArray[np.bool_]:
    return np.isfinite(values) & (values != np.float32(ABSENT))


def _edges(count: int, most: int) -> NDArray[np.int64]:
    return np.linspace(0, count, min(count, most) + 1).astype(np.int64)
