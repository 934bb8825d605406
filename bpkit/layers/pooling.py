"""Pooling of the plane: the largest, or the mean, of each window.

    Max:  y[p] = x[m(p)],   m(p) = argmax over the window of p            p: output position
          ∂L/∂x[q] = Σ_p [m(p) = q] δ[p]                                  q: input position

    Mean: y[p] = 1/D[p] Σ_{q in window of p} x[q]
          ∂L/∂x[q] = Σ_{p: q in window of p} δ[p] / D[p]

Planes (batch and channel) do not mix. D[p] is the window's size: all of it, or without the padding
(`count_include_pad=False`), or `divisor_override`.

Saved: for the maximum its position, in the narrowest integers that hold it (two bytes an output up to
a plane of 181 x 181; torch keeps eight and the input as well). For the mean nothing.
Source: Zhou & Chellappa, "Computation of optical flow using a neural network", 1988 (max); LeCun et
al., 1989 (mean).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bpkit.core.function import Function
from bpkit.core.layout import channels_last, laid_out
from bpkit.core.module import Handwritten
from bpkit.core.spec import LayerSpec, Sample, randn

Pair = tuple[int, int]


class MaxPool2dFunction(Function):
    """`(x [*, h, w], kernel, stride, padding, dilation, ceil) -> (y [*, h', w'], m [*, h', w'])`."""

    @staticmethod
    def forward(
        input: Tensor, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair, ceil_mode: bool
    ) -> tuple[Tensor, Tensor]:
        return F.max_pool2d_with_indices(input, kernel, stride, padding, dilation, ceil_mode)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        input = inputs[0]
        _, position = output
        ctx.mark_non_differentiable(position)
        ctx.set_materialize_grads(False)
        ctx.size = input.shape[-2:]
        ctx.channels_last = channels_last(input)
        ctx.save_for_backward(position.to(_narrowest(ctx.size.numel())))

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if grad_output is None:
            return (None,) * 6
        (position,) = ctx.saved_tensors
        rows = grad_output.dim() - 2  # the axis of the plane's rows; its columns follow
        if ctx.channels_last:
            grad_output, position, rows = grad_output.permute(0, 2, 3, 1), position.permute(0, 2, 3, 1), 1
        before, after = grad_output.shape[:rows], grad_output.shape[rows + 2 :]
        windows = (*before, grad_output.shape[rows : rows + 2].numel(), *after)
        zeros = grad_output.new_zeros(*before, ctx.size.numel(), *after)
        gathered = zeros.scatter_add(rows, position.reshape(windows).long(), grad_output.reshape(windows))
        grad_input = gathered.reshape(*before, *ctx.size, *after)
        return grad_input.permute(0, 3, 1, 2) if ctx.channels_last else grad_input, *(None,) * 5


def _narrowest(positions: int) -> torch.dtype:
    dtypes = (torch.int8, torch.int16, torch.int32, torch.int64)
    return next(dtype for dtype in dtypes if positions <= torch.iinfo(dtype).max + 1)


def max_pool2d(
    input: Tensor,
    kernel_size: int | Pair,
    stride: int | Pair | None = None,
    padding: int | Pair = 0,
    dilation: int | Pair = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """`torch.nn.functional.max_pool2d` with a hand-written backward.

    Args:
        input: `[n, c, h, w]` or `[c, h, w]`.
        kernel_size: rows and columns of a window.
        stride: step of the windows, the kernel's size if left out.
        padding: rows and columns of minus infinity on each side.
        dilation: step inside a window.
        ceil_mode: keep windows that reach beyond the end.
        return_indices: return the positions of the maxima in their plane as well.

    Returns:
        `[n, c, h', w']` or `[c, h', w']`; with `return_indices` a pair of them.

    Raises:
        RuntimeError: a window that does not fit, in torch's words.
    """
    output, position = MaxPool2dFunction.call(
        input, kernel_size, () if stride is None else stride, padding, dilation, ceil_mode
    )
    return (output, position) if return_indices else output


class MaxPool2d(Handwritten, nn.MaxPool2d):
    """`torch.nn.MaxPool2d` with a hand-written backward."""

    def forward(self, input: Tensor) -> Any:
        return max_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.ceil_mode,
            self.return_indices,
        )


class AvgPool2dFunction(Function):
    """`(x [*, h, w], kernel, stride, padding, ceil, count_include_pad, divisor) -> [*, h', w']`."""

    @staticmethod
    def forward(
        input: Tensor,
        kernel: Pair,
        stride: Pair,
        padding: Pair,
        ceil_mode: bool,
        count_include_pad: bool,
        divisor: int | None,
    ) -> Tensor:
        return F.avg_pool2d(input, kernel, stride, padding, ceil_mode, count_include_pad, divisor)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, ctx.kernel, ctx.stride, ctx.padding, _, ctx.include, ctx.divisor = inputs
        ctx.size = input.shape[-2:]
        ctx.channels_last = channels_last(input)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        rows, columns = (
            _window_sizes(
                grad_output.shape[axis - 2],
                ctx.size[axis],
                ctx.kernel[axis],
                ctx.stride[axis],
                ctx.padding[axis],
                ctx.include,
            )
            for axis in (0, 1)
        )
        if ctx.divisor is not None:
            share = grad_output / ctx.divisor
        elif len({*rows}) == 1 and len({*columns}) == 1:
            share = grad_output / (rows[0] * columns[0])
        else:
            like: Any = {"dtype": grad_output.dtype, "device": grad_output.device}
            share = grad_output / (torch.tensor(rows, **like)[:, None] * torch.tensor(columns, **like))
        grad_input = _spread(share, ctx.size, ctx.kernel, ctx.stride, ctx.padding)
        return laid_out(grad_input, ctx.channels_last), None, None, None, None, None, None


def _window_sizes(
    count: int, size: int, kernel: int, stride: int, padding: int, include_padding: bool
) -> list[int]:
    """How many positions each of `count` windows along one axis counts."""
    sizes = []
    for p in range(count):
        start = p * stride - padding
        end = min(start + kernel, size + padding)
        sizes.append(end - start if include_padding else min(end, size) - max(start, 0))
    return sizes


def _spread(share: Tensor, size: torch.Size, kernel: Pair, stride: Pair, padding: Pair) -> Tensor:
    """Each output's share added to every position of its window: [*, h', w'] to [*, h, w]."""
    *planes, tall, wide = share.shape
    if kernel == stride and padding == (0, 0) and (tall * kernel[0], wide * kernel[1]) == tuple(size):
        # The windows tile the plane: every position is in one of them.
        tiles = share[..., :, None, :, None].expand(*planes, tall, kernel[0], wide, kernel[1])
        return tiles.reshape(*planes, *size)
    ones = share.new_ones(1, 1, *kernel)
    folded = share.reshape(-1, 1, tall, wide)
    covered = F.conv_transpose2d(folded, ones, None, stride)
    missing = [max(0, padding[axis] + size[axis] - covered.shape[2 + axis]) for axis in (0, 1)]
    padded = F.pad(covered, (0, missing[1], 0, missing[0]))
    inside = padded[:, 0, padding[0] : padding[0] + size[0], padding[1] : padding[1] + size[1]]
    return inside.reshape(*planes, *size)


def avg_pool2d(
    input: Tensor,
    kernel_size: int | Pair,
    stride: int | Pair | None = None,
    padding: int | Pair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """`torch.nn.functional.avg_pool2d` with a hand-written backward.

    Args:
        input: `[n, c, h, w]` or `[c, h, w]`.
        kernel_size: rows and columns of a window.
        stride: step of the windows, the kernel's size if left out.
        padding: rows and columns of zeros on each side.
        ceil_mode: keep windows that reach beyond the end.
        count_include_pad: count padded zeros as elements of the mean.
        divisor_override: divide by this instead of the window's size.

    Returns:
        `[n, c, h', w']` or `[c, h', w']`.

    Raises:
        RuntimeError: a window that does not fit, in torch's words.
    """
    kernel = _pair(kernel_size)
    step = _pair(() if stride is None else stride) or kernel
    return AvgPool2dFunction.call(
        input, kernel, step, _pair(padding), ceil_mode, count_include_pad, divisor_override
    )


class AvgPool2d(Handwritten, nn.AvgPool2d):
    """`torch.nn.AvgPool2d` with a hand-written backward."""

    def forward(self, input: Tensor) -> Tensor:
        return avg_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )


def _pair(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return tuple(value) * 2 if len(value) == 1 else tuple(value)
    return value, value


def _distinct(*shape: int) -> Tensor:
    """Values at least 0.1 apart, so that no small step changes which is the largest."""
    return (randn(math.prod(shape)).argsort().double() / 10).reshape(shape)


def _max_samples() -> Iterable[Sample]:
    yield Sample(args=(2,), inputs=(_distinct(2, 2, 4, 4),))
    settings = {"stride": 2, "padding": 1, "ceil_mode": True}
    yield Sample(args=(3,), kwargs=settings, inputs=(_distinct(1, 2, 4, 5),), label="overlapping")
    yield Sample(args=((2, 1),), kwargs={"dilation": 2, "stride": 1}, inputs=(_distinct(1, 4, 4),))


def _avg_samples() -> Iterable[Sample]:
    yield Sample(args=(2,), inputs=(randn(2, 2, 4, 4),))
    settings = {"stride": 2, "padding": 1, "ceil_mode": True, "count_include_pad": False}
    yield Sample(args=(3,), kwargs=settings, inputs=(randn(1, 2, 4, 5),), label="overlapping")
    override = {"stride": (3, 1), "divisor_override": 5}
    yield Sample(args=((2, 1),), kwargs=override, inputs=(randn(2, 4, 4),), label="divisor, gaps")


SPECS = (
    LayerSpec(
        name="MaxPool2d",
        module=MaxPool2d,
        reference=nn.MaxPool2d,
        samples=_max_samples,
        saves="position of each maximum, two bytes an output",
        saved_bytes=lambda module, inputs, output: (
            output.numel() * _narrowest(inputs[0].shape[-1] * inputs[0].shape[-2]).itemsize
        ),
        aliases=("max_pool2d",),
        summary="the largest of each window",
    ),
    LayerSpec(
        name="AvgPool2d",
        module=AvgPool2d,
        reference=nn.AvgPool2d,
        samples=_avg_samples,
        saves="nothing",
        saved_bytes=lambda module, inputs, output: 0,
        aliases=("avg_pool2d",),
        summary="the mean of each window",
    ),
)
