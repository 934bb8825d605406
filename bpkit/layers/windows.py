"""Windows over n axes: what every pooling shares.

Window p of an axis covers the positions q = s p - a + d k for its taps k: s stride, a padding, d dilation.
Two transposes are all that pooling needs backward:

    ∂L/∂x[q] = Σ_p [m(p) = q] δ[p]                a maximum that came from position m(p): `scatter_planes`
    ∂L/∂x[q] = Σ_{p: q in window of p} δ[p]       a sum over the window (d = 1):          `spread_along`

The second is a product over axes. Along one, q = s m + r lies in the windows p = m + o of the offsets

    ceil((r + a - k + 1) / s) <= o <= floor((r + a) / s),

the same for all m: each of the s phases r is a sum of a few shifted copies of δ, and the phases interleave.
Source: Vaidyanathan, "Multirate systems and filter banks", 1993, ch. 4 (polyphase).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active
from torch.nn import functional as F

from bpkit.core.transforms import may_write


def per_axis(value: Any, axes: int) -> tuple[int, ...]:
    """A setting for each of `axes` axes, from one for all or from one each."""
    values = tuple(value) if isinstance(value, Iterable) else (value,)
    return values * axes if len(values) == 1 else values


def channels_inner(tensor: Tensor, axes: int) -> bool:
    """Whether `tensor` is a batch, `[n, c, *axes]`, with its channels innermost in memory."""
    if axes < 2 or tensor.dim() != axes + 2 or tensor.shape[1] == 1:
        return False
    strides = tensor.stride()
    return strides[1] == 1 and strides[-1] >= tensor.shape[1]


def channels_to_end(tensor: Tensor) -> Tensor:
    """`[n, c, *axes]` viewed as `[n, *axes, c]`."""
    return tensor.movedim(1, -1)


def laid_out(tensor: Tensor, inner: bool) -> Tensor:
    """`tensor` with its channels innermost in memory, or outermost; a copy only if it is not so."""
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1) if inner else tensor.contiguous()


def unviewed(output: Tensor) -> Tensor:
    """`output` as no view: torch's pools of one axis return one of its plane's pool, not to be written to."""
    return output if _are_functorch_transforms_active() else output.data  # `Function` sees to vmap itself


# Indices a block, made and used in the same half megabyte again and again: 1 M floats pooled in pairs,
# channels innermost, take 1.6 ms, and 3.3 with all indices at once.
BLOCK = 1 << 16


def scatter_planes(
    delta: Tensor, first: Tensor, distance: Tensor, size: tuple[int, ...], inner: bool
) -> Tensor:
    """Each element added to a position of its plane: `[*, *p]` to `[*, *size]`, laid out as the input.

    The position, counted row by row, is `first` `[*p]` and `distance` `[*, *p]` from there.
    """
    axes, channels = len(size), 1
    if inner:  # a sample is one plane, of channels times as many positions
        channels = delta.shape[1]
        channel = torch.arange(channels, device=delta.device)
        first = first.unsqueeze(-1) * channels + channel
        delta, distance = channels_to_end(delta), channels_to_end(distance)
    planes = delta.shape[: delta.dim() - axes - inner]
    shape = planes.numel(), delta.shape[len(planes) :].numel()
    delta, distance = delta.reshape(shape), distance.reshape(shape)
    first = first.reshape(-1)
    total = delta.new_zeros(planes.numel(), torch.Size(size).numel() * channels)
    if may_write():
        rows = max(1, BLOCK // max(1, shape[1]))
        for part, by, source in zip(*(each.split(rows) for each in (total, distance, delta)), strict=True):
            part.scatter_add_(-1, torch.add(first, by, alpha=channels), source)
    else:
        total = scatter_add(total, torch.add(first, distance, alpha=channels), delta)
    total = total.reshape(*planes, *size, *(channels,) * inner)
    return total.movedim(-1, 1) if inner else total


def scatter_add(total: Tensor, index: Tensor, source: Tensor) -> Tensor:
    """`total`, which nothing else reads, plus each element of `source` at its `index` in the last axis."""
    if _are_functorch_transforms_active():  # where the index alone may be mapped
        return total.scatter_add(-1, index, source)
    return total.scatter_add_(-1, index, source)


def spread_along(delta: Tensor, dim: int, size: int, kernel: int, stride: int, padding: int) -> Tensor:
    """Each element added to every position of its window, along one axis, which gets `size` positions."""
    offsets = [
        (-((kernel - 1 - r - padding) // stride), (r + padding) // stride)  # the first rounded up
        for r in range(min(stride, size))
    ]
    groups, count = -(-size // stride), delta.shape[dim]
    first, last = min(low for low, _ in offsets), max(high for _, high in offsets)
    before, after = max(0, -first), max(0, groups - 1 + last - (count - 1))
    if before or after:
        delta = F.pad(delta, (0, 0) * (delta.dim() - 1 - dim) + (before, after))

    def phase(low: int, high: int) -> Tensor:
        if low > high:  # in the gap between two windows
            return torch.zeros_like(delta.narrow(dim, 0, groups))
        total = delta.narrow(dim, before + low, groups)
        for offset in range(low + 1, high + 1):
            total = total + delta.narrow(dim, before + offset, groups)
        return total

    distinct = {each: phase(*each) for each in offsets}
    if len(distinct) == 1:
        total = distinct[offsets[0]]
        phases = total.unsqueeze(dim + 1).expand(
            *total.shape[: dim + 1], len(offsets), *total.shape[dim + 1 :]
        )
    else:
        phases = torch.stack([distinct[each] for each in offsets], dim + 1)
    interleaved = phases.reshape(*delta.shape[:dim], groups * len(offsets), *delta.shape[dim + 1 :])
    return interleaved.narrow(dim, 0, size)


def named(function: Callable[..., Any], name: str, axes: int) -> Callable[..., Any]:
    """`function`, called `name` and documented for that many axes."""
    function.__name__ = function.__qualname__ = name
    function.__doc__ = (function.__doc__ or "").replace("{axes}", str(axes))
    return function
