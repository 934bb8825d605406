"""MaxPool1d, 2d, 3d: the largest of each window.

    y[p] = x[m(p)],   m(p) = argmax of x over the window of p         p: output position, of 1 to 3 axes
    ∂L/∂x[q] = Σ_p [m(p) = q] δ[p]                                    q: input position

Planes (batch and channel) do not mix. Of equal elements the first is the largest; NaN is larger than all.

Saved: how far m(p) lies behind the first position of its window, counted row by row, in the narrowest
integers: one byte an output for windows of two rows in planes up to 254 wide (torch keeps eight, and the
input).
Source: Zhou & Chellappa, "Computation of optical flow using a neural network", 1988.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bpkit.core.function import Function
from bpkit.core.module import Handwritten
from bpkit.core.precision import narrowest
from bpkit.core.spec import LayerSpec, Sample, randn
from bpkit.layers.windows import channels_inner, named, per_axis, scatter_planes, unviewed

KERNELS: dict[int, Callable[..., Any]] = {
    1: torch.max_pool1d_with_indices,
    2: torch._C._nn.max_pool2d_with_indices,
    3: torch._C._nn.max_pool3d_with_indices,
}


class MaxPoolFunction(Function):
    """`(x [*, *q], axes, kernel, stride, padding, dilation, ceil) -> (y [*, *p], m [*, *p])`."""

    @staticmethod
    def forward(
        input: Tensor, axes: int, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
    ) -> tuple[Tensor, Tensor]:
        output, position = KERNELS[axes](input, kernel, stride, padding, dilation, ceil_mode)
        return (unviewed(output), unviewed(position)) if axes == 1 else (output, position)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        input, axes, kernel, stride, padding, dilation, _ = inputs
        position = output[1]
        ctx.mark_non_differentiable(position)
        ctx.set_materialize_grads(False)
        if not ctx.needs_input_grad[0]:
            return
        ctx.size = input.shape[-axes:]
        ctx.inner = channels_inner(input, axes)
        kernel = per_axis(kernel, axes)
        ctx.stride = per_axis(stride, axes) or kernel
        ctx.padding = per_axis(padding, axes)
        # Both are cut to the narrow integers first: they wrap round, and the difference is right again.
        narrow = narrowest(_reach(ctx.size, kernel, per_axis(dilation, axes)))
        first = _first(position, ctx.size, ctx.stride, ctx.padding)
        ctx.save_for_backward(position.to(narrow) - first.to(narrow))

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if grad_output is None or not ctx.needs_input_grad[0]:
            return (None,) * 7
        (distance,) = ctx.saved_tensors
        first = _first(distance, ctx.size, ctx.stride, ctx.padding)
        return scatter_planes(grad_output, first, distance, ctx.size, ctx.inner), *(None,) * 6


class MaxPool3dFunction(MaxPoolFunction):
    """`MaxPoolFunction` of three axes, which autocast runs in float32 on CPU."""

    autocast = {"cpu": "fp32"}


def _first(like: Tensor, size: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...]) -> Tensor:
    """The position of each window's first element, outside of the plane where that is padding: `[*p]`."""
    first, step = torch.zeros((), dtype=torch.int64, device=like.device), 1
    for axis in reversed(range(len(size))):
        count, by = like.shape[like.dim() - len(size) + axis], stride[axis] * step
        start = -padding[axis] * step
        along = (
            torch.arange(start, start + count * by, by, device=like.device)
            if by * count
            else first.new_zeros(count)
        )
        first = along.reshape(-1, *(1,) * (len(size) - 1 - axis)) + first
        step *= size[axis]
    return first


def _reach(size: tuple[int, ...], kernel: tuple[int, ...], dilation: tuple[int, ...]) -> int:
    """From the first position of a window to its last, counted row by row."""
    return sum((kernel[a] - 1) * dilation[a] * math.prod(size[a + 1 :]) for a in range(len(size)))


def _max_pool(axes: int) -> Callable[..., Any]:
    call = (MaxPool3dFunction if axes == 3 else MaxPoolFunction).call

    def max_pool(
        input: Tensor,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] | None = None,
        padding: int | tuple[int, ...] = 0,
        dilation: int | tuple[int, ...] = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Any:
        """`torch.nn.functional.max_pool{axes}d` with a hand-written backward.

        Args:
            input: `[n, c, *]` or `[c, *]`.
            kernel_size: of a window, for all axes or for each.
            stride: step of the windows, the kernel's size if left out.
            padding: positions of minus infinity on each side.
            dilation: step inside a window.
            ceil_mode: keep windows that reach beyond the end.
            return_indices: return the positions of the maxima in their plane as well.

        Returns:
            `[n, c, *]` or `[c, *]`; with `return_indices` a pair of them.

        Raises:
            RuntimeError: a window that does not fit, in torch's words.
        """
        step: Any = () if stride is None else stride
        output, position = call(input, axes, kernel_size, step, padding, dilation, ceil_mode)
        return (output, position) if return_indices else output

    return named(max_pool, f"max_pool{axes}d", axes)


def _with_indices(axes: int) -> Callable[..., tuple[Tensor, Tensor]]:
    pool = (max_pool1d, max_pool2d, max_pool3d)[axes - 1]

    def max_pool_with_indices(
        input: Tensor,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] | None = None,
        padding: int | tuple[int, ...] = 0,
        dilation: int | tuple[int, ...] = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Any:
        """`max_pool{axes}d` with `return_indices`."""
        return pool(input, kernel_size, stride, padding, dilation, ceil_mode, True)

    return named(max_pool_with_indices, f"max_pool{axes}d_with_indices", axes)


max_pool1d, max_pool2d, max_pool3d = map(_max_pool, (1, 2, 3))
max_pool1d_with_indices, max_pool2d_with_indices, max_pool3d_with_indices = map(_with_indices, (1, 2, 3))


class _MaxPool(Handwritten):
    functional: Callable[..., Any]

    def forward(self: Any, input: Tensor) -> Any:
        return self.functional(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.ceil_mode,
            self.return_indices,
        )


class MaxPool1d(_MaxPool, nn.MaxPool1d):
    """`torch.nn.MaxPool1d` with a hand-written backward."""

    functional = staticmethod(max_pool1d)


class MaxPool2d(_MaxPool, nn.MaxPool2d):
    """`torch.nn.MaxPool2d` with a hand-written backward."""

    functional = staticmethod(max_pool2d)


class MaxPool3d(_MaxPool, nn.MaxPool3d):
    """`torch.nn.MaxPool3d` with a hand-written backward."""

    functional = staticmethod(max_pool3d)


def distinct(*shape: int) -> Tensor:
    """Values at least 0.1 apart, so that no small step changes which is the largest."""
    return (randn(math.prod(shape)).argsort().double() / 10).reshape(shape)


def _samples(axes: int) -> Callable[[], Iterable[Sample]]:
    return lambda: _given(axes)


def _given(axes: int) -> Iterable[Sample]:
    sides = (4, 5, 3)[:axes]
    yield Sample(args=(2,), inputs=(distinct(2, 2, *sides),))
    settings = {"stride": 2, "padding": 1, "ceil_mode": True}
    yield Sample(args=(3,), kwargs=settings, inputs=(distinct(1, 2, *sides),), label="overlapping")
    kernel = (2, 1, 1)[:axes]
    yield Sample(args=(kernel,), kwargs={"dilation": 2, "stride": 1}, inputs=(distinct(1, *sides),))


def _saved_bytes(module: Any, inputs: tuple[Any, ...], output: Any) -> int:
    values, axes = output[0] if isinstance(output, tuple) else output, int(type(module).__name__[-2])
    kernel, dilation = per_axis(module.kernel_size, axes), per_axis(module.dilation, axes)
    return values.numel() * narrowest(_reach(inputs[0].shape[-axes:], kernel, dilation)).itemsize


SPECS = tuple(
    LayerSpec(
        name=f"MaxPool{axes}d",
        module=module,
        reference=reference,
        samples=_samples(axes),
        saves="distance of each maximum from its window's start, one or two bytes an output",
        saved_bytes=_saved_bytes,
        aliases=(f"max_pool{axes}d",),
        summary="the largest of each window",
    )
    for axes, module, reference in (
        (1, MaxPool1d, nn.MaxPool1d),
        (2, MaxPool2d, nn.MaxPool2d),
        (3, MaxPool3d, nn.MaxPool3d),
    )
)
