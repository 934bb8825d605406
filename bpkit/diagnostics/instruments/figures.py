"""What instruments read, on its way to the host: few kernels for many small tensors, and one copy for all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from math import gcd

import torch
from torch import Tensor

from bpkit.diagnostics.shards import local

Value = tuple[float, ...] | float | None
Figure = Tensor | float | Sequence[float] | None

STACKED = 1 << 22  # elements that are stacked at once: 16 MiB of float32


@dataclass(frozen=True, eq=False)
class Batch:
    """Figures that are enqueued together, and what makes values of their numbers on the host.

    Attributes:
        tensors: of any shapes and numeric dtypes, on any devices.
        finish: given the numbers of each tensor, flat, it returns a value for each thing that is measured.
    """

    tensors: Sequence[Tensor]
    finish: Callable[[Sequence[list[float]]], Sequence[Value]]

    def then(self, function: Callable[..., Value]) -> Batch:
        """The same with each figure made into another of its numbers, on the host."""

        def each(values: Sequence[Value]) -> list[Value]:
            return [function(*value) if isinstance(value, tuple) else None for value in values]

        return together(each, self)


Figures = Sequence[Figure] | Batch


def batch(figures: Figures) -> Batch:
    """Any figures as a batch of them."""
    if isinstance(figures, Batch):
        return figures

    def finish(numbers: Sequence[list[float]]) -> list[Value]:
        arrived = iter(numbers)
        return [_value(each, next(arrived) if isinstance(each, Tensor) else ()) for each in figures]

    return Batch([figure for figure in figures if isinstance(figure, Tensor)], finish)


def together(finish: Callable[..., Sequence[Value]], *batches: Batch) -> Batch:
    """One batch of several: `finish` is given the values of each."""
    ends = list(accumulate((len(each.tensors) for each in batches), initial=0))

    def whole(numbers: Sequence[list[float]]) -> Sequence[Value]:
        parts = (numbers[start:end] for start, end in pairwise(ends))
        return finish(*(each.finish(part) for each, part in zip(batches, parts, strict=True)))

    return Batch([tensor for each in batches for tensor in each.tensors], whole)


def few(tensor: Tensor, most: int, *, in_order: bool = True) -> Tensor:
    """At most so many elements of this rank's part, flat: a view where that can be.

    The stride has no divisor in common with the last axis, so that every feature is met as often.

    Args:
        tensor: dense, and not empty.
        most: elements.
        in_order: as the axes are, for elements of tensors that are compared; else as they lie in memory, so
            that nothing has to be copied for it.
    """
    tensor = local(tensor.detach())
    if not in_order and not tensor.is_contiguous():
        tensor = tensor.permute(sorted(range(tensor.dim()), key=tensor.stride, reverse=True))
    flat = tensor.reshape(-1)
    stride = -(-flat.numel() // most)
    while stride > 1 and gcd(stride, tensor.shape[-1]) > 1:
        stride += 1
    return flat[::stride]


def to_host(batches: Sequence[Batch]) -> list[Sequence[list[float]]]:
    """The numbers of the tensors of each batch, by one copy from each device that holds some."""
    tensors = [tensor for each in batches for tensor in each.tensors]
    places: dict[torch.device, list[int]] = {}
    for place, tensor in enumerate(tensors):
        places.setdefault(tensor.device, []).append(place)
    found: list[list[float]] = [[] for _ in tensors]
    for own in places.values():
        parts = [_real(local(tensors[place])).reshape(-1) for place in own]
        numbers = torch.cat(parts).tolist()  # as wide as the widest
        start = 0
        for place, part in zip(own, parts, strict=True):
            end = start + part.numel()
            found[place] = numbers[start:end]
            start = end
    ends = list(accumulate((len(each.tensors) for each in batches), initial=0))
    return [found[start:end] for start, end in pairwise(ends)]


def by_rows(function: Callable[..., Tensor], *columns: Sequence[Tensor | None]) -> Batch:
    """Figures of each place by kernels that many places share; None where a column has None.

    Places whose tensors are alike in length, dtype and device are stacked.

    Args:
        function: from one [rows, elements] a column to [rows, figures].
        columns: by place, a tensor of one axis or None; those of one place are equally long.
    """
    groups: dict[object, list[tuple[int, list[Tensor]]]] = {}
    for place, each in enumerate(zip(*columns, strict=True)):
        known = [tensor for tensor in each if tensor is not None]
        if len(known) == len(each):
            alike = tuple((tensor.device, tensor.dtype, tensor.numel()) for tensor in known)
            groups.setdefault(alike, []).append((place, known))
    tensors, places = [], []
    for group in groups.values():
        most = max(1, STACKED // max(1, group[0][1][0].numel()))
        for start in range(0, len(group), most):
            part = group[start : start + most]
            tensors.append(
                function(*(torch.stack(column) for column in zip(*(own for _, own in part), strict=True)))
            )
            places.append([place for place, _ in part])
    return Batch(tensors, partial(_in_place, places, len(columns[0])))


def _in_place(places: list[list[int]], count: int, numbers: Sequence[list[float]]) -> list[Value]:
    found: list[Value] = [None] * count
    for own, flat in zip(places, numbers, strict=True):
        width = len(flat) // len(own)
        for row, place in enumerate(own):
            found[place] = tuple(flat[row * width : (row + 1) * width])
    return found


def _value(figure: Figure, numbers: Sequence[float]) -> Value:
    if isinstance(figure, Tensor):
        return tuple(numbers) if figure.dim() else numbers[0]
    return figure if figure is None or isinstance(figure, float | int) else tuple(figure)


def _real(figure: Tensor) -> Tensor:
    return figure.abs() if figure.is_complex() else figure
