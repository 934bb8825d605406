"""`cells`: a statistic of many layers over many samples, as no more cells than a picture has room for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bpkit.tensorboard.record import ABSENT

Array = NDArray[np.float32]
Scale = Literal["share", "signed", "log"]

SHARES = frozenset({"dead", "saturated", "zeros"})  # parts of a whole, from 0 to 1
_COUNTED, _FINITE, _INFINITE, _NAN = (np.uint8(1 << bit) for bit in range(4))  # what a bin has in it


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
    def over(ufunc: np.ufunc, each: NDArray[Any]) -> NDArray[Any]:
        for axis, edges in enumerate((below, beside)):
            if len(edges) < each.shape[axis]:
                each = ufunc.reduceat(each, edges, axis=axis)
        return each

    finite = _finite(values)
    counted = finite & (values > 0) if how == "log" else finite
    kinds = counted * _COUNTED | finite * _FINITE | np.isinf(values) * _INFINITE | np.isnan(values) * _NAN
    there = over(np.bitwise_or, kinds)  # one pass over bytes, not four over numbers
    with np.errstate(all="ignore"):
        if how == "share":
            found = over(np.maximum, np.where(counted, values, -np.inf))
        else:
            shown = np.log(values, dtype=np.float64) if how == "log" else values
            total = over(np.add, np.where(counted, shown, 0).astype(np.float64))
            found = total / over(np.add, counted.astype(np.float64))
            found = np.exp(found) if how == "log" else found
    found = np.where(there & _COUNTED, found, np.where(there & _FINITE, 0, ABSENT))
    found = np.where(there & _INFINITE, np.inf, found)
    return np.where(there & _NAN, np.nan, found).astype(np.float32)


def _finite(values: Array) -> NDArray[np.bool_]:
    return np.isfinite(values) & (values != np.float32(ABSENT))


def _edges(count: int, most: int) -> NDArray[np.int64]:
    return np.linspace(0, count, min(count, most) + 1).astype(np.int64)
