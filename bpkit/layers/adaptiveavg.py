"""AdaptiveAvgPool1d, 2d, 3d: the mean of windows laid so that the output has a given size.

Along an axis of L inputs and O outputs, window p is the q with floor(p L / O) <= q < ceil((p + 1) L / O).

    y[p] = Σ_q A[p,q] x[q]            A[p,q] = [q in window of p] / D[p],    D[p]: the window's size
    ∂L/∂x[q] = Σ_p A[p,q] δ[p]        axis by axis                           p: output, q: input position

Where O divides L the windows tile the axis, and each δ[p] / D goes to every position of its tile.

Saved: nothing.
Source: He et al., "Spatial pyramid pooling in deep convolutional networks", 2014.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bpkit.core.function import Function
from bpkit.core.module import Handwritten
from bpkit.core.precision import widen
from bpkit.core.spec import LayerSpec, Sample
from bpkit.layers.axes import Block, transpose_along
from bpkit.layers.maxpool import distinct
from bpkit.layers.windows import (
    channels_inner,
    channels_to_end,
    laid_out,
    named,
    per_axis,
    spread_along,
    unviewed,
)

MEANS: dict[int, Callable[..., Tensor]] = {
    1: lambda input, size: unviewed(torch.adaptive_avg_pool1d(input, size)),
    2: torch._C._nn.adaptive_avg_pool2d,
    3: torch._C._nn.adaptive_avg_pool3d,
}


class AdaptiveAvgPoolFunction(Function):
    """`(x [*, *q], axes, size) -> [*, *p]`."""

    @staticmethod
    def forward(input: Tensor, axes: int, size: Any) -> Tensor:
        return MEANS[axes](input, size)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, axes, _ = inputs
        ctx.size = input.shape[-axes:]
        ctx.inner = channels_inner(input, axes)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        return adaptive_gradient(grad_output, ctx.size, ctx.inner), None, None


class AdaptiveAvgPool3dFunction(AdaptiveAvgPoolFunction):
    """`AdaptiveAvgPoolFunction` of three axes, which autocast runs in float32 on CPU."""

    autocast = {"cpu": "fp32"}


def adaptive_gradient(grad_output: Tensor, size: tuple[int, ...], inner: bool) -> Tensor:
    """∂L/∂x of the adaptive mean: `[*, *p]` to `[*, *size]`, laid out as x."""
    axes = len(size)
    planes = grad_output.shape[: grad_output.dim() - axes]
    if not grad_output.numel():
        return grad_output.new_zeros(*planes, *size)
    delta = channels_to_end(widen(grad_output)) if inner else widen(grad_output)
    start = delta.dim() - axes - inner
    tiles = [
        size[axis] // delta.shape[start + axis] if size[axis] % delta.shape[start + axis] == 0 else 0
        for axis in range(axes)
    ]
    whole = math.prod([tile for tile in tiles if tile])
    if whole != 1:
        delta = delta / whole
    for axis in reversed(range(axes)):
        if tiles[axis] == 0:
            delta = transpose_along(delta, start + axis, size[axis], _means)
        elif tiles[axis] > 1:
            delta = spread_along(delta, start + axis, size[axis], tiles[axis], tiles[axis], 0)
    grad_input = laid_out(delta.movedim(-1, 1), True) if inner else delta.contiguous()
    return grad_input.to(grad_output.dtype)


def _means(dtype: torch.dtype, device: torch.device, count: int, size: int) -> Block:
    """The blocks of A along one axis."""

    def block(start: int, end: int) -> tuple[int, int, Tensor]:
        first, last = start * count // size, -(-end * count // size)
        p = torch.arange(first, last, device=device)[:, None]
        q = torch.arange(start, end, device=device)
        low = (p * size).div(count, rounding_mode="floor")
        high = ((p + 1) * size + count - 1).div(count, rounding_mode="floor")
        return first, last, ((low <= q) & (q < high)) / (high - low).to(dtype)

    return block


def output_sizes(output_size: Any, input: Tensor, axes: int) -> Any:
    """The size asked for, None standing for the input's; what is wrong with it torch's kernel says."""
    if isinstance(output_size, Iterable):
        asked = tuple(output_size)
        if axes > 1 and input.dim() <= len(asked):
            raise ValueError(f"Input dimension should be at least {len(asked) + 1}")
        own = input.shape[input.dim() - len(asked) :]
        return tuple(size if each is None else each for each, size in zip(asked, own, strict=True))
    return output_size if axes == 1 else per_axis(output_size, axes)


def _adaptive_avg_pool(axes: int) -> Callable[..., Tensor]:
    call = (AdaptiveAvgPool3dFunction if axes == 3 else AdaptiveAvgPoolFunction).call

    def adaptive_avg_pool(input: Tensor, output_size: Any) -> Tensor:
        """`torch.nn.functional.adaptive_avg_pool{axes}d` with a hand-written backward.

        Args:
            input: `[n, c, *]` or `[c, *]`.
            output_size: of all axes, or of each; None keeps the input's.

        Returns:
            `[n, c, *output_size]` or `[c, *output_size]`.

        Raises:
            RuntimeError: sizes that do not go together, in torch's words.
        """
        return call(input, axes, output_sizes(output_size, input, axes))

    return named(adaptive_avg_pool, f"adaptive_avg_pool{axes}d", axes)


adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d = map(_adaptive_avg_pool, (1, 2, 3))


class _AdaptiveAvgPool(Handwritten):
    functional: Callable[..., Tensor]

    def forward(self: Any, input: Tensor) -> Tensor:
        return self.functional(input, self.output_size)


class AdaptiveAvgPool1d(_AdaptiveAvgPool, nn.AdaptiveAvgPool1d):
    """`torch.nn.AdaptiveAvgPool1d` with a hand-written backward."""

    functional = staticmethod(adaptive_avg_pool1d)


class AdaptiveAvgPool2d(_AdaptiveAvgPool, nn.AdaptiveAvgPool2d):
    """`torch.nn.AdaptiveAvgPool2d` with a hand-written backward."""

    functional = staticmethod(adaptive_avg_pool2d)


class AdaptiveAvgPool3d(_AdaptiveAvgPool, nn.AdaptiveAvgPool3d):
    """`torch.nn.AdaptiveAvgPool3d` with a hand-written backward."""

    functional = staticmethod(adaptive_avg_pool3d)


def adaptive_samples(axes: int) -> Callable[[], Iterable[Sample]]:
    """What both adaptive pools are proven on: tiles, one window, and windows that overlap."""
    sides, sizes = (4, 5, 3)[:axes], (3, None, 2)[-axes:]

    def samples() -> Iterable[Sample]:
        yield Sample(args=(2,), inputs=(distinct(2, 2, *(4, 6, 2)[:axes]),), label="tiles")
        yield Sample(args=(1,), inputs=(distinct(2, 2, *sides),), label="global")
        yield Sample(args=(sizes if axes > 1 else 3,), inputs=(distinct(2, *sides),), label="overlapping")

    return samples


SPECS = tuple(
    LayerSpec(
        name=f"AdaptiveAvgPool{axes}d",
        module=module,
        reference=reference,
        samples=adaptive_samples(axes),
        saves="nothing",
        saved_bytes=lambda module, inputs, output: 0,
        aliases=(f"adaptive_avg_pool{axes}d",),
        summary="the mean of windows that give an output size",
    )
    for axes, module, reference in (
        (1, AdaptiveAvgPool1d, nn.AdaptiveAvgPool1d),
        (2, AdaptiveAvgPool2d, nn.AdaptiveAvgPool2d),
        (3, AdaptiveAvgPool3d, nn.AdaptiveAvgPool3d),
    )
)
