"""Norms of many tensors at once, and the one copy to the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bpkit.diagnostics.instruments.instrument import Figure
from bpkit.diagnostics.shards import is_sharded, local


def norms(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Euclidean norms in float32 or wider, None for None, by as few kernels as torch can.

    Of sharded tensors (FSDP2) these are the norms of the whole, by one reduction over the ranks that
    hold a part: every rank has to call this.
    """
    found: list[Tensor | None] = [None] * len(tensors)
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    parts = [None if each is None else local(each) for each in tensors]
    for index, tensor in enumerate(parts):
        if tensor is not None and tensor.numel() and _measurable(tensor.dtype):
            groups.setdefault((tensor.device, tensor.dtype), []).append(index)
    for (_, dtype), indices in groups.items():
        group = [tensor for index in indices if (tensor := parts[index]) is not None]
        for index, value in zip(indices, torch._foreach_norm(group, 2, real(dtype)), strict=True):
            found[index] = value
    _reduce(tensors, found)
    return found


def to_host(figures: Sequence[Figure]) -> list[tuple[float, ...] | float | None]:
    """The figures as numbers, by one copy from each device that holds some."""
    values: list[tuple[float, ...] | float | None] = []
    places: dict[torch.device, list[int]] = {}
    for index, figure in enumerate(figures):
        if isinstance(figure, Tensor):
            places.setdefault(figure.device, []).append(index)
            values.append(None)
        else:
            values.append(figure if figure is None or isinstance(figure, float | int) else tuple(figure))
    for indices in places.values():
        columns = [figure for index in indices if isinstance(figure := figures[index], Tensor)]
        numbers = torch.cat(
            [_real(column).reshape(-1) for column in columns]
        ).tolist()  # as wide as the widest
        start = 0
        for index, column in zip(indices, columns, strict=True):
            end = start + column.numel()
            values[index] = numbers[start] if column.dim() == 0 else tuple(numbers[start:end])
            start = end
    return values


def dense(grad: Tensor | None) -> Tensor | None:
    """A sparse gradient's values, its repeated rows added up."""
    return grad.coalesce().values() if grad is not None and grad.is_sparse else grad


def _reduce(tensors: Sequence[Tensor | None], found: list[Tensor | None]) -> None:
    """Replace the norms of parts by those of the wholes, in place: one reduction for each mesh."""
    meshes: dict[object, list[int]] = {}
    for index, tensor in enumerate(tensors):
        if tensor is not None and is_sharded(tensor):
            meshes.setdefault(_layout(tensor), []).append(index)
    for indices in meshes.values():
        first: Any = tensors[indices[0]]
        part = first.to_local()
        squares = torch.stack(
            [
                torch.zeros((), device=part.device, dtype=torch.float64)
                if (value := found[index]) is None
                else value.double() ** 2
                for index in indices
            ]
        )
        for axis, placement in enumerate(first.placements):
            if not placement.is_replicate():
                torch.distributed.all_reduce(squares, group=first.device_mesh.get_group(axis))
        for index, value in zip(indices, squares.sqrt().unbind(), strict=True):
            found[index] = value


def _layout(tensor: Any) -> object:
    return tensor.device_mesh, tensor.placements


def _measurable(dtype: torch.dtype) -> bool:
    """Whether torch can take norms of it: integers and eight-bit floats, of quantised models, have none."""
    return dtype.is_complex or (dtype.is_floating_point and dtype.itemsize > 1)


def _real(figure: Tensor) -> Tensor:
    return figure.abs() if figure.is_complex() else figure


def real(dtype: torch.dtype) -> torch.dtype | None:
    """float32 for half precision, whose squares overflow; None, the tensor's own, otherwise."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else None
