"""AvgPool1d, 2d, 3d: the mean of each window.

    y[p] = 1/D[p] Σ_{q in window of p} x[q]                           p: output position, of 1 to 3 axes
    ∂L/∂x[q] = Σ_{p: q in window of p} δ[p] / D[p]                    q: input position

Planes (batch and channel) do not mix. D[p] is the window's size: all of it that lies in the padded plane, or
without the padding (`count_include_pad=False`), or `divisor_override`. The sum is taken
axis by axis: `windows.spread_along`.

Saved: nothing.
Source: LeCun et al., "Backpropagation applied to handwritten zip code recognition", 1989.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bpkit.core.function import Function
from bpkit.core.fuse import formula
from bpkit.core.module import Handwritten
from bpkit.core.precision import widen
from bpkit.core.spec import LayerSpec, Sample, randn
from bpkit.layers.windows import channels_inner, channels_to_end, laid_out, per_axis, spread_along, unviewed


class AvgPoolFunction(Function):
    """`(x [*, *q], axes, kernel, stride, padding, ceil, count_include_pad, divisor) -> [*, *p]`."""

    @staticmethod
    def forward(
        input: Tensor,
        axes: int,
        kernel: Any,
        stride: Any,
        padding: Any,
        ceil_mode: bool,
        count_include_pad: bool,
        divisor: int | None,
    ) -> Tensor:
        if axes == 1:
            return unviewed(torch.avg_pool1d(input, kernel, stride, padding, ceil_mode, count_include_pad))
        pool = torch._C._nn.avg_pool2d if axes == 2 else torch._C._nn.avg_pool3d
        return pool(input, kernel, stride, padding, ceil_mode, count_include_pad, divisor)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, axes, kernel, stride, padding, _, ctx.include, ctx.divisor = inputs
        ctx.kernel = per_axis(kernel, axes)
        ctx.stride = per_axis(stride, axes) or ctx.kernel
        ctx.padding = per_axis(padding, axes)
        ctx.size = input.shape[-axes:]
        ctx.inner = channels_inner(input, axes)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        share = spread_mean(
            widen(grad_output),
            ctx.size,
            ctx.kernel,
            ctx.stride,
            ctx.padding,
            ctx.include,
            ctx.divisor,
            ctx.inner,
        )
        return share.to(grad_output.dtype), *(None,) * 7


class AvgPool3dFunction(AvgPoolFunction):
    """`AvgPoolFunction` of three axes, which autocast runs in float32 on CPU."""

    autocast = {"cpu": "fp32"}


@formula
def spread_mean(
    delta: Tensor,
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    include_padding: bool,
    divisor: int | None,
    inner: bool,
) -> Tensor:
    """∂L/∂x from δ: each element's share added to every position of its window, laid out as x."""
    axes = len(size)
    if inner:
        delta = channels_to_end(delta)
    start = delta.dim() - axes - inner
    uniform = 1 if divisor is None else divisor
    for axis in reversed(range(axes)):  # the innermost first: the largest copy is then of whole rows
        count, geometry = delta.shape[start + axis], (size[axis], kernel[axis], stride[axis], padding[axis])
        if divisor is None:
            sizes = _window_sizes(count, *geometry, include_padding, delta)
            if isinstance(sizes, Tensor):
                delta = delta / sizes.reshape(-1, *(1,) * (delta.dim() - 1 - start - axis))
            else:
                uniform *= sizes
    if uniform != 1:
        delta = delta / uniform
    for axis in reversed(range(axes)):
        delta = spread_along(delta, start + axis, size[axis], kernel[axis], stride[axis], padding[axis])
    return laid_out(delta.movedim(-1, 1), True) if inner else delta.contiguous()


def _window_sizes(
    count: int, size: int, kernel: int, stride: int, padding: int, include_padding: bool, like: Tensor
) -> Any:
    """How many positions each of `count` windows along one axis counts; one number if all the same."""
    fits = (count - 1) * stride - padding + kernel <= size + padding
    if fits and (include_padding or not padding):
        return kernel
    start = torch.arange(count, device=like.device) * stride - padding
    end = (start + kernel).clamp(max=size + padding)
    counted = end - start if include_padding else end.clamp(max=size) - start.clamp(min=0)
    return counted.to(like.dtype)


def avg_pool1d(
    input: Tensor,
    kernel_size: int | tuple[int, ...],
    stride: int | tuple[int, ...] | None = None,
    padding: int | tuple[int, ...] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """`torch.nn.functional.avg_pool1d` with a hand-written backward; arguments as `avg_pool2d`."""
    step = () if stride is None else stride
    return AvgPoolFunction.call(input, 1, kernel_size, step, padding, ceil_mode, count_include_pad, None)


def avg_pool2d(
    input: Tensor,
    kernel_size: int | tuple[int, ...],
    stride: int | tuple[int, ...] | None = None,
    padding: int | tuple[int, ...] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """`torch.nn.functional.avg_pool2d` with a hand-written backward.

    Args:
        input: `[n, c, *]` or `[c, *]`.
        kernel_size: of a window, for all axes or for each.
        stride: step of the windows, the kernel's size if left out.
        padding: zeros on each side.
        ceil_mode: keep windows that reach beyond the end.
        count_include_pad: count padded zeros as elements of the mean.
        divisor_override: divide by this instead of the window's size.

    Returns:
        `[n, c, *]` or `[c, *]`.

    Raises:
        RuntimeError: a window that does not fit, in torch's words.
    """
    step = () if stride is None else stride
    return AvgPoolFunction.call(
        input, 2, kernel_size, step, padding, ceil_mode, count_include_pad, divisor_override
    )


def avg_pool3d(
    input: Tensor,
    kernel_size: int | tuple[int, ...],
    stride: int | tuple[int, ...] | None = None,
    padding: int | tuple[int, ...] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """`torch.nn.functional.avg_pool3d` with a hand-written backward; arguments as `avg_pool2d`."""
    step = () if stride is None else stride
    return AvgPool3dFunction.call(
        input, 3, kernel_size, step, padding, ceil_mode, count_include_pad, divisor_override
    )


class AvgPool1d(Handwritten, nn.AvgPool1d):
    """`torch.nn.AvgPool1d` with a hand-written backward."""

    def forward(self, input: Tensor) -> Tensor:
        return avg_pool1d(
            input, self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad
        )


class _AvgPool(Handwritten):
    functional: Callable[..., Tensor]

    def forward(self: Any, input: Tensor) -> Tensor:
        return self.functional(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )


class AvgPool2d(_AvgPool, nn.AvgPool2d):
    """`torch.nn.AvgPool2d` with a hand-written backward."""

    functional = staticmethod(avg_pool2d)


class AvgPool3d(_AvgPool, nn.AvgPool3d):
    """`torch.nn.AvgPool3d` with a hand-written backward."""

    functional = staticmethod(avg_pool3d)


def _samples(axes: int) -> Callable[[], Iterable[Sample]]:
    return lambda: _given(axes)


def _given(axes: int) -> Iterable[Sample]:
    sides = (4, 5, 3)[:axes]
    yield Sample(args=(2,), inputs=(randn(2, 2, *sides),))
    settings: dict[str, Any] = {"stride": 2, "padding": 1, "ceil_mode": True, "count_include_pad": False}
    yield Sample(args=(3,), kwargs=settings, inputs=(randn(1, 2, *sides),), label="overlapping")
    gaps: dict[str, Any] = {"stride": (3, 1, 1)[:axes]}
    if axes > 1:
        gaps["divisor_override"] = 5
    yield Sample(args=((2, 1, 1)[:axes],), kwargs=gaps, inputs=(randn(2, *sides),), label="divisor, gaps")


SPECS = tuple(
    LayerSpec(
        name=f"AvgPool{axes}d",
        module=module,
        reference=reference,
        samples=_samples(axes),
        saves="nothing",
        saved_bytes=lambda module, inputs, output: 0,
        aliases=(f"avg_pool{axes}d",),
        summary="the mean of each window",
    )
    for axes, module, reference in (
        (1, AvgPool1d, nn.AvgPool1d),
        (2, AvgPool2d, nn.AvgPool2d),
        (3, AvgPool3d, nn.AvgPool3d),
    )
)
