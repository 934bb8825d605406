"""Norms of many tensors at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

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
    if not any(each is not None and is_sharded(each) for each in tensors):
        return found
    squares = over_ranks(tensors, [None if each is None else each.double() ** 2 for each in found], ())
    return [
        value.sqrt() if tensor is not None and value is not None and is_sharded(tensor) else norm
        for tensor, value, norm in zip(tensors, squares, found, strict=True)
    ]


def dense(grad: Tensor | None) -> Tensor | None:
    """A sparse gradient's values, its repeated rows added up."""
    return grad.coalesce().values() if grad is not None and grad.is_sparse else grad


def over_ranks(
    tensors: Sequence[Tensor | None], sums: Sequence[Tensor | None], shape: tuple[int, ...]
) -> list[Tensor | None]:
    """Sums over a rank's part of each sharded tensor as those over the whole: one reduction for each mesh.

    Args:
        tensors: what they are of; the sums of others stay as they are.
        sums: of `shape`; None where this rank has no element.
        shape: of one.
    """
    found = list(sums)
    meshes: dict[object, list[int]] = {}
    for index, tensor in enumerate(tensors):
        if tensor is not None and is_sharded(tensor):
            meshes.setdefault(_layout(tensor), []).append(index)
    for indices in meshes.values():
        first: Any = tensors[indices[0]]
        nothing = torch.zeros(shape, device=first.to_local().device, dtype=torch.float64)
        rows = [nothing if (own := sums[index]) is None else own.double() for index in indices]
        table = torch.stack(rows)
        for axis, placement in enumerate(first.placements):
            if not placement.is_replicate():
                torch.distributed.all_reduce(table, group=first.device_mesh.get_group(axis))
        for index, row in zip(indices, table.unbind(), strict=True):
            found[index] = row
    return found


def _layout(tensor: Any) -> object:
    return tensor.device_mesh, tensor.placements


def _measurable(dtype: torch.dtype) -> bool:
    """Whether torch can take norms of it: integers and eight-bit floats, of quantised models, have none."""
    return dtype.is_complex or (dtype.is_floating_point and dtype.itemsize > 1)


def real(dtype: torch.dtype) -> torch.dtype | None:
    """float32 for half precision, whose squares overflow; None, the tensor's own, otherwise."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else None
