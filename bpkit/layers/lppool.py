"""LPPool1d, 2d, 3d: the p-norm of each window.

    y[j] = (K/D[j] Σ_{q in window of j} x[q]^p)^(1/p)       j: output, q: input position
    ∂L/∂x[q] = x[q]^(p-1) Σ_{j: q in window of j} δ[j] y[j]^(1-p) K / D[j]

K is the kernel's size, D[j] what of it lies in the plane: torch scales the last windows of `ceil_mode` up to
a full one. Where y is zero its derivative does not exist, and torch's documentation sets it to zero. For
p = ∞ this is the largest absolute value.

Saved: x. Recomputing y leaves the output to in-place users, as torch does (which keeps four further tensors).
Source: Sermanet, Chintala & LeCun, "Convolutional neural networks applied to house numbers digit
classification", 2012.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bpkit import ops
from bpkit.core.function import Function
from bpkit.core.module import Handwritten
from bpkit.core.precision import widen
from bpkit.core.spec import LayerSpec, Sample, nbytes, randn
from bpkit.layers.avgpool import spread_mean
from bpkit.layers.maxpool import max_pool1d, max_pool2d, max_pool3d
from bpkit.layers.windows import channels_inner, named, per_axis


def _norm(input: Tensor, axes: int, p: float, kernel: Any, stride: Any, ceil_mode: bool) -> Tensor:
    pool: Any = (torch.avg_pool1d, torch._C._nn.avg_pool2d, torch._C._nn.avg_pool3d)[axes - 1]
    total = pool(input.pow(p), kernel, stride, 0, ceil_mode) * math.prod(per_axis(kernel, axes))
    return total.pow(1 / p)


class LPPoolFunction(Function):
    """`(x [*, *q], axes, p, kernel, stride, ceil) -> y [*, *j]`."""

    autocast = {"cuda": "fp32"}

    @staticmethod
    def forward(input: Tensor, axes: int, p: float, kernel: Any, stride: Any, ceil_mode: bool) -> Tensor:
        return _norm(input, axes, p, kernel, stride, ceil_mode)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, *ctx.settings = inputs
        ctx.save_for_backward(input)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        axes, p, kernel, stride, ceil_mode = ctx.settings
        (saved,) = ctx.saved_tensors
        input = widen(saved)
        norm = _norm(input, axes, p, kernel, stride, ceil_mode)
        zero = norm == 0
        slope = torch.where(zero, 0, norm.masked_fill(zero, 1).pow(1 - p))
        kernel = per_axis(kernel, axes)
        stride = per_axis(stride, axes) or kernel
        size, inner = input.shape[-axes:], channels_inner(input, axes)
        share = widen(grad_output) * slope * math.prod(kernel)
        shares = spread_mean(share, size, kernel, stride, (0,) * axes, True, None, inner)
        grad_input = shares if p == 1 else shares * input.pow(p - 1)
        return grad_input.to(saved.dtype), *(None,) * 5


class LPPool3dFunction(LPPoolFunction):
    """`LPPoolFunction` of three axes, which autocast runs in float32 on CPU."""

    autocast = {"cpu": "fp32", "cuda": "fp32"}


def _lp_pool(axes: int) -> Callable[..., Tensor]:
    call = (LPPool3dFunction if axes == 3 else LPPoolFunction).call
    largest = (max_pool1d, max_pool2d, max_pool3d)[axes - 1]

    def lp_pool(
        input: Tensor,
        norm_type: int | float,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] | None = None,
        ceil_mode: bool = False,
    ) -> Tensor:
        """`torch.nn.functional.lp_pool{axes}d` with a hand-written backward.

        Args:
            input: `[n, c, *]` or `[c, *]`.
            norm_type: the power p; ∞ and -∞ for the largest and the smallest absolute value.
            kernel_size: of a window, for all axes or for each.
            stride: step of the windows, the kernel's size if left out.
            ceil_mode: keep windows that reach beyond the end.

        Returns:
            `[n, c, *]` or `[c, *]`.

        Raises:
            RuntimeError: a window that does not fit, in torch's words.
        """
        if norm_type == math.inf:
            return largest(ops.abs(input), kernel_size, stride, 0, 1, ceil_mode)
        if norm_type == -math.inf:
            return ops.neg(largest(ops.neg(ops.abs(input)), kernel_size, stride, 0, 1, ceil_mode))
        return call(input, axes, norm_type, kernel_size, () if stride is None else stride, ceil_mode)

    return named(lp_pool, f"lp_pool{axes}d", axes)


lp_pool1d, lp_pool2d, lp_pool3d = map(_lp_pool, (1, 2, 3))


class _LPPool(Handwritten):
    functional: Callable[..., Tensor]

    def forward(self: Any, input: Tensor) -> Tensor:
        return self.functional(input, float(self.norm_type), self.kernel_size, self.stride, self.ceil_mode)


class LPPool1d(_LPPool, nn.LPPool1d):
    """`torch.nn.LPPool1d` with a hand-written backward."""

    functional = staticmethod(lp_pool1d)


class LPPool2d(_LPPool, nn.LPPool2d):
    """`torch.nn.LPPool2d` with a hand-written backward."""

    functional = staticmethod(lp_pool2d)


class LPPool3d(_LPPool, nn.LPPool3d):
    """`torch.nn.LPPool3d` with a hand-written backward."""

    functional = staticmethod(lp_pool3d)


def _samples(axes: int) -> Callable[[], Iterable[Sample]]:
    sides = (4, 5, 3)[:axes]

    def samples() -> Iterable[Sample]:
        yield Sample(args=(2, 2), inputs=(randn(2, 2, *sides),))
        overlapping = {"stride": 2, "ceil_mode": True}
        yield Sample(args=(3, 3), kwargs=overlapping, inputs=(randn(1, 2, *sides).abs(),), label="p = 3")
        yield Sample(args=(1.5, 2), inputs=(randn(2, *sides).abs(),), label="p = 1.5, unbatched")

    return samples


SPECS = tuple(
    LayerSpec(
        name=f"LPPool{axes}d",
        module=module,
        reference=reference,
        samples=_samples(axes),
        saves="input",
        saved_bytes=lambda module, inputs, output: nbytes(inputs[0]),
        aliases=(f"lp_pool{axes}d",),
        summary="the p-norm of each window",
    )
    for axes, module, reference in (
        (1, LPPool1d, nn.LPPool1d),
        (2, LPPool2d, nn.LPPool2d),
        (3, LPPool3d, nn.LPPool3d),
    )
)
