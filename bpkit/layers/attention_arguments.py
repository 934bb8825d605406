"""What attention is given: torch's errors, its broadcasting, and four axes of whatever rank."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bpkit.core.function import autocasts


def check(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, dropout_p: float) -> None:
    """Refuse, in torch's words, what does not fit whatever is broadcast."""
    given = query, key, value
    if any(each.is_nested for each in given):
        raise NotImplementedError(
            "bpkit: attention over nested tensors has no hand-written backward; pad them, or leave the "
            "module out: bpkit.convert(model, exclude=...)"
        )
    if any(each.dim() < 2 for each in given):
        raise RuntimeError(
            "Expected query, key, and value to all be  at least 2 dimensional, but got query.dim: "
            f"{query.dim()} key.dim: {key.dim()} and value.dim: {value.dim()} instead."
        )
    if not autocasts(query.device.type):
        names = [_scalar_type(each.dtype) for each in given]
        if len(set(names)) > 1:
            raise RuntimeError(
                "Expected query, key, and value to have the same dtype, but got query.dtype: "
                f"{names[0]} key.dtype: {names[1]} and value.dtype: {names[2]} instead."
            )
        if attn_mask is not None and attn_mask.dtype not in (torch.bool, query.dtype):
            raise RuntimeError(
                "Expected attn_mask dtype to be bool or float or to match query dtype, but got "
                f"attn_mask.dtype: {_scalar_type(attn_mask.dtype)} and  query.dtype: {names[0]} instead."
            )
    if not query.is_floating_point():
        raise RuntimeError(f"expected a floating-point query, not {query.dtype}")
    if key.shape[-1] != query.shape[-1] or key.shape[-2] != value.shape[-2]:
        raise RuntimeError(
            f"Expected size for first two dimensions of batch2 tensor to match: query {list(query.shape)}, "
            f"key {list(key.shape)}, value {list(value.shape)}"
        )
    if not 0 <= dropout_p <= 1:
        raise RuntimeError(f"dropout probability has to be between 0 and 1, but got {dropout_p}")


def _scalar_type(dtype: torch.dtype) -> str:
    """The name that torch's errors have for a dtype."""
    name = str(dtype).removeprefix("torch.")
    return {"float32": "float", "float64": "double", "float16": "c10::Half", "bfloat16": "c10::BFloat16"}.get(
        name, name.removesuffix("64").removesuffix("32")
    )


def aligned(query: Tensor, key: Tensor, value: Tensor, grouped: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The three as views with the same leading axes; heads of grouped keys and values stay as they are."""
    given = query, key, value
    own = 2
    if grouped and any(each.dim() < 3 for each in given):
        raise IndexError("Dimension out of range: enable_gqa needs heads, the third last axis, of all three")
    if grouped and len({each.shape[-3] for each in given}) > 1:
        own = 3
        heads = query.shape[-3]
        if any(each.shape[-3] == 0 or heads % each.shape[-3] for each in (key, value)):
            raise RuntimeError(
                "Number of heads in key and value must divide the number of heads in query, but got "
                f"{key.shape[-3]}, {value.shape[-3]} and {heads}"
            )
    leads = [each.shape[:-own] for each in given]
    if len(set(leads)) > 1:
        for lead in leads[1:]:
            _require_broadcast(leads[0], lead)
        common = torch.broadcast_shapes(*leads)
        query, key, value = (each.expand(*common, *each.shape[-own:]) for each in given)
    return query, key, value


def _require_broadcast(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    rank = max(len(first), len(second))
    for back in range(1, min(len(first), len(second)) + 1):
        a, b = first[-back], second[-back]
        if a != b and 1 not in (a, b):
            raise RuntimeError(
                f"The size of tensor a ({a}) must match the size of tensor b ({b}) at non-singleton "
                f"dimension {rank - back}"
            )


def check_mask(mask: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse a mask that does not broadcast to the scores' `shape`."""
    _require_broadcast(mask.shape, shape)
    if mask.dim() > len(shape) or any(
        own != 1 and size == 1 for own, size in zip(mask.shape[::-1], shape[::-1], strict=False)
    ):
        raise RuntimeError(
            f"output with shape {list(shape)} doesn't match the broadcast shape "
            f"{list(torch.broadcast_shapes(tuple(mask.shape), shape))}"
        )


def four(tensor: Tensor) -> Tensor:
    """`[*, h, L, d]` as `[batch, h, L, d]`: a view, unless more than two leading axes are laid out oddly."""
    if tensor.dim() == 4:
        return tensor
    *lead, rows, width = tensor.shape
    return tensor.reshape(math.prod(lead[:-1]), lead[-1] if lead else 1, rows, width)


def four_mask(mask: Tensor | None, shape: torch.Size) -> Tensor | None:
    """The mask of queries of `shape` with four axes, each its full size or 1."""
    if mask is None:
        return None
    full = mask[(None,) * (len(shape) - mask.dim())] if mask.dim() < len(shape) else mask
    if len(shape) > 4:
        outer = full.shape[:-3]
        full = full.expand(*(shape[:-3] if math.prod(outer) > 1 else outer), *full.shape[-3:])
    return four(full)


def like_mask(gradient: Tensor, mask: Tensor, shape: torch.Size) -> Tensor:
    """The gradient of `four_mask(mask, shape)` summed to that of `mask`."""
    if len(shape) > 4 and gradient.shape[0] > 1:
        gradient = gradient.reshape(*shape[:-3], *gradient.shape[1:]).sum_to_size(
            (1,) * (len(shape) - mask.dim()) + tuple(mask.shape)
        )
    return gradient.reshape(mask.shape).to(mask.dtype)
