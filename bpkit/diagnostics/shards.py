"""Tensors of which a rank has a part: FSDP2 and tensor parallelism make `DTensor`s."""

from __future__ import annotations

from torch import Tensor


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor; any other as it is."""
    return tensor.to_local() if is_distributed(tensor) else tensor  # type: ignore[attr-defined]


def is_distributed(tensor: Tensor) -> bool:
    """Whether it is a `DTensor`, whose module is slow to import and is there where one exists."""
    return hasattr(tensor, "device_mesh")


def is_sharded(tensor: Tensor) -> bool:
    """Whether this rank has only a part of it."""
    return is_distributed(tensor) and not all(each.is_replicate() for each in tensor.placements)  # type: ignore[attr-defined]
