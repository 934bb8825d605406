"""Operators that order the elements along axes: extremes, medians, sorted forms.

amax, and the maximum of everything     g shared evenly by all that attain it
max along an axis, topk, sort           g to the element whose index is returned
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bpkit.ops.op import op
from bpkit.ops.pointwise import maximum, minimum
from bpkit.ops.reductions import Axes, reduced_axes, spread


def _attaining(g: Tensor, input: Tensor, out: Tensor, shape: torch.Size, dim: Axes, keepdim: bool) -> Tensor:
    extreme = spread(out, shape, dim, keepdim)
    attains = (input == extreme) | (input.isnan() & extreme.isnan())  # NaN is larger, and smaller, than all
    share = attains / attains.sum(reduced_axes(dim, len(shape)) if shape else (), True)
    return spread(g, shape, dim, keepdim) * share


amax = op(
    lambda input, dim=(), keepdim=False: torch.amax(input, dim, keepdim),
    name="amax",
    holomorphic=False,
    input=_attaining,
)
amin = op(
    lambda input, dim=(), keepdim=False: torch.amin(input, dim, keepdim),
    name="amin",
    holomorphic=False,
    input=_attaining,
)


def _at(g: Tensor, out1: Tensor, shape: torch.Size, dim: int, keepdim: bool) -> Tensor:
    """G at the positions that were chosen along `dim`, zeros elsewhere."""
    if not shape:
        return g
    if not keepdim:
        g, out1 = g.unsqueeze(dim), out1.unsqueeze(dim)
    return g.new_zeros(shape).scatter(dim, out1, g)


def _along(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    return op(
        lambda input, dim, keepdim=False: tuple(function(input, dim, keepdim)),
        name=name,
        holomorphic=False,
        input=_at,
    )


_max_along, _min_along = _along(torch.max, "max"), _along(torch.min, "min")
_median_along = _along(torch.median, "median")


def max(input: Tensor, dim: Any = None, keepdim: bool = False) -> Any:
    """`torch.max`: of everything, along an axis, or of two tensors."""
    return _extreme(torch.return_types.max, amax, _max_along, maximum, input, dim, keepdim)


def min(input: Tensor, dim: Any = None, keepdim: bool = False) -> Any:
    """`torch.min`: of everything, along an axis, or of two tensors."""
    return _extreme(torch.return_types.min, amin, _min_along, minimum, input, dim, keepdim)


def _extreme(pair: Any, everything: Any, along: Any, two: Any, input: Tensor, dim: Any, keepdim: bool) -> Any:
    if isinstance(dim, Tensor):
        return two(input, dim)
    if dim is None:
        return everything(input)
    return pair(along(input, dim, keepdim))


_median = op(
    lambda input, dim, keepdim: torch.median(input), name="median", holomorphic=False, input=_attaining
)


def median(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
    """`torch.median`: of everything, or along an axis."""
    if dim is None:
        return _median(input, None, False)
    return torch.return_types.median(_median_along(input, dim, keepdim))


_topk = op(
    lambda input, k, dim=-1, largest=True, sorted=True: tuple(torch.topk(input, k, dim, largest, sorted)),
    name="topk",
    holomorphic=False,
    input=lambda g, out1, shape, dim: _at(g, out1, shape, dim, True),
)
_sort = op(
    lambda input, dim=-1, descending=False, stable=False: tuple(
        torch.sort(input, dim=dim, descending=descending, stable=stable)
    ),
    name="sort",
    holomorphic=False,
    input=lambda g, out1, shape, dim: _at(g, out1, shape, dim, True),
)


def topk(input: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    """`torch.topk`."""
    return torch.return_types.topk(_topk(input, k, dim, largest, sorted))


def sort(input: Tensor, dim: int = -1, descending: bool = False, stable: bool = False) -> Any:
    """`torch.sort`."""
    return torch.return_types.sort(_sort(input, dim, descending, stable))
