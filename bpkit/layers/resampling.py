"""The weights of a resampling, one axis at a time: y[p] = Σ_q A[p,q] x[q].

The weights are read off the forward kernel itself, run along one axis on combs: x[q] = 1 at every S-th q, S
wider than the taps of an output, so that each output answers with the weight of the one tooth that it sees.
So the transpose is that of the map which ran, in every mode and memory format. (That of torch is not always:
with scale factors, its antialiased modes and its nearest neighbours of one and three axes read other places
backward than forward.)
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from bpkit.layers.axes import Block
from bpkit.layers.windows import laid_out

# How far from its own place an output reads, in inputs (antialiased: times the shrinkage).
REACH = {
    "nearest": 1,
    "nearest-exact": 1,
    "linear": 1,
    "bilinear": 1,
    "trilinear": 1,
    "bicubic": 2,
    "lanczos": 3,
}
KERNELS = {
    "nearest": "upsample_nearest{}d",
    "nearest-exact": "_upsample_nearest_exact{}d",
    "linear": "upsample_linear{}d",
    "bilinear": "upsample_bilinear{}d",
    "trilinear": "upsample_trilinear{}d",
    "bicubic": "upsample_bicubic{}d",
}


class Like(NamedTuple):
    """What decides, beside the sizes, which kernel the forward takes."""

    axes: int
    channels: int
    inner: bool
    antialias: bool


def repeats(mode: str, size: int, count: int, scale: float | None) -> bool:
    """Whether an axis repeats each input 1, 2, 4, 8 or 16 times: by such numbers torch divides exactly."""
    times = count // size
    return (
        mode in ("nearest", "nearest-exact")
        and count == times * size
        and (times in (1, 2, 4, 8, 16) and scale in (None, times))
    )


def weights(
    dtype: torch.dtype,
    device: torch.device,
    count: int,
    size: int,
    axis: int,
    scale: float | None,
    mode: str,
    align: bool | None,
    like: Like,
) -> Block:
    """The blocks of A for an axis of `size` inputs and `count` outputs."""
    step = 1 / scale if scale else size / count  # inputs an output
    if align:
        step = (size - 1) / (count - 1) if count > 1 else 0
    shift = 0.0 if mode == "nearest" or (align and not like.antialias) else (step - 1) / 2
    half = math.ceil(REACH[mode] * (max(1.0, step) if like.antialias else 1)) + 2  # two for rounding
    teeth = 2 * half + 1
    q = torch.arange(size, device=device)
    comb = (q % teeth == torch.arange(teeth, device=device)[:, None]).to(dtype)  # [teeth, size]
    seen = _along(comb, axis, count, scale, mode, align, like)  #                             [teeth, count]
    p = torch.arange(count, device=device, dtype=torch.float64)
    place = (p * step + shift).round().clamp(0, size - 1).long()

    def block(start: int, end: int) -> tuple[int, int, Tensor]:
        first, last = 0, count
        if step and end - start < size:
            # The edges' outputs read the first and the last input from further away.
            first = 0 if start == 0 else max(0, min(count - 1, math.floor((start - half - 1 - shift) / step)))
            last = (
                count if end == size else max(first, min(count, math.ceil((end + half - shift) / step) + 1))
            )
        near = (q[start:end] - place[first:last, None]).abs() <= half
        return first, last, torch.where(near, seen[q[start:end] % teeth, first:last].t(), 0)

    return block


def _along(
    rows: Tensor, axis: int, count: int, scale: float | None, mode: str, align: bool | None, like: Like
) -> Tensor:
    """`[m, q]` resampled to `[m, count]`, by the kernel that the forward took for `axis`."""
    axes, channels, inner, antialias = like
    name = f"_upsample_{mode}2d_aa" if antialias else KERNELS[mode].format(axes)
    if antialias:  # two passes with the same weights; of columns one wide torch's is wrong
        axis = axes - 1
    sides = [1] * axes
    sides[axis] = rows.shape[1]
    batch = rows.reshape(len(rows), 1, *sides).expand(-1, min(channels, 4), *sides)
    sides[axis] = count
    corners = () if mode in ("nearest", "nearest-exact") else (bool(align),)
    scales = [scale if each == axis else None for each in range(axes)]
    resampled = getattr(torch.ops.aten, name).default(laid_out(batch, inner), sides, *corners, *scales)
    return resampled[:, 0].reshape(len(rows), count)
