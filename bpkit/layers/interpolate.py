"""Interpolate and Upsample: resampling of the axes behind batch and channel, each by a linear map.

    y = (A₁ ⊗ … ⊗ Aₙ) x               ∂L/∂x = (A₁ᵀ ⊗ … ⊗ Aₙᵀ) δ

Aₐ[p,q] is the weight of input q in output p along axis a: one entry a row for the nearest neighbour, two for
linear, four for cubic interpolation, a window as wide as the shrinkage with `antialias`; for `area` see
`adaptiveavg.py`.

The weights are read off the forward: `resampling.py`.

Saved: nothing.
Source: Keys, "Cubic convolution interpolation for digital image processing", 1981; torch's UpSample.h.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from bpkit.core.function import Function
from bpkit.core.module import Handwritten
from bpkit.core.precision import widen
from bpkit.core.spec import LayerSpec, Sample, randn
from bpkit.layers.adaptiveavg import adaptive_gradient
from bpkit.layers.axes import transpose_along
from bpkit.layers.resampling import Like, repeats, weights
from bpkit.layers.windows import channels_inner, channels_to_end, laid_out, unviewed


class InterpolateFunction(Function):
    """`(x [n, c, *q], size, scale_factor, mode, align_corners, recompute, antialias) -> [n, c, *p]`."""

    autocast = {"cuda": "fp32"}

    @staticmethod
    def forward(
        input: Tensor,
        size: Any,
        scale_factor: Any,
        mode: str,
        align_corners: bool | None,
        recompute: bool | None,
        antialias: bool,
    ) -> Tensor:
        output = F.interpolate(
            input,
            size,
            scale_factor,
            mode,
            align_corners,
            recompute_scale_factor=recompute,
            antialias=antialias,
        )
        return unviewed(output) if mode == "area" and input.dim() == 3 else output

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, _, scale_factor, ctx.mode, ctx.align, recompute, antialias = inputs
        ctx.size = input.shape[2:]
        ctx.inner = channels_inner(input, len(ctx.size))
        ctx.like = Like(len(ctx.size), input.shape[1], ctx.inner, antialias)
        scales = scale_factor if isinstance(scale_factor, (tuple, list)) else (scale_factor,) * len(ctx.size)
        ctx.scales = (None,) * len(ctx.size) if recompute else tuple(scales)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.mode == "area":
            return adaptive_gradient(grad_output, ctx.size, ctx.inner), *(None,) * 6
        delta = channels_to_end(widen(grad_output)) if ctx.inner else widen(grad_output)
        start = 1 if ctx.inner else 2
        for axis, size in enumerate(ctx.size):  # the outermost first: whole rows, and fewer for the next
            dim, count, scale = start + axis, delta.shape[start + axis], ctx.scales[axis]
            times = count // size
            if repeats(ctx.mode, size, count, scale):
                tiles = delta.reshape(*delta.shape[:dim], size, times, *delta.shape[dim + 1 :])
                delta = tiles.select(dim + 1, 0)
                for i in range(1, times):
                    delta = delta + tiles.select(dim + 1, i)
            else:
                settings = axis, scale, ctx.mode, ctx.align, ctx.like
                delta = transpose_along(delta, dim, size, weights, *settings)
        grad_input = laid_out(delta.movedim(-1, 1), True) if ctx.inner else delta.contiguous()
        return grad_input.to(grad_output.dtype), *(None,) * 6


class AreaFunction(InterpolateFunction):
    """`InterpolateFunction` by means, which autocast leaves alone."""

    autocast = {}


class Area3dFunction(InterpolateFunction):
    """`AreaFunction` of three axes, which autocast runs in float32 on CPU."""

    autocast = {"cpu": "fp32"}


def interpolate(
    input: Tensor,
    size: int | tuple[int, ...] | None = None,
    scale_factor: float | tuple[float, ...] | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Tensor:
    """`torch.nn.functional.interpolate` with a hand-written backward.

    Args:
        input: `[n, c, *]` with one to three axes.
        size: of the output, of all axes or of each.
        scale_factor: the output's size as a multiple of the input's, instead.
        mode: `"nearest"`, `"nearest-exact"`, `"area"`; by the number of axes `"linear"`, `"bilinear"`,
            `"trilinear"`; for images `"bicubic"`, `"lanczos"`.
        align_corners: the corners' middles, not their edges, lie on each other.
        recompute_scale_factor: take the scale from the sizes, not from `scale_factor`.
        antialias: widen the window by what the image shrinks.

    Returns:
        `[n, c, *]`.

    Raises:
        ValueError: sizes, scales and modes that do not go together, in torch's words.
        NotImplementedError: a mode that the number of axes does not have.
    """
    function: type[Function] = InterpolateFunction
    if mode == "area":
        function = Area3dFunction if input.dim() == 5 else AreaFunction
    return function.call(input, size, scale_factor, mode, align_corners, recompute_scale_factor, antialias)


def upsample(
    input: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
) -> Tensor:
    """`torch.nn.functional.upsample`, the deprecated name of `interpolate`."""
    _deprecated("upsample")
    return interpolate(input, size, scale_factor, mode, align_corners)


def upsample_nearest(input: Tensor, size: Any = None, scale_factor: Any = None) -> Tensor:
    """`torch.nn.functional.upsample_nearest`, deprecated: `interpolate` does the same."""
    _deprecated("upsample_nearest")
    return interpolate(input, size, scale_factor, "nearest")


def upsample_bilinear(input: Tensor, size: Any = None, scale_factor: Any = None) -> Tensor:
    """`torch.nn.functional.upsample_bilinear`, deprecated: `interpolate` does the same."""
    _deprecated("upsample_bilinear")
    return interpolate(input, size, scale_factor, "bilinear", True)


def _deprecated(name: str) -> None:
    warnings.warn(
        f"`nn.functional.{name}` is deprecated. Use `nn.functional.interpolate` instead.", stacklevel=3
    )


class _Upsample(Handwritten):
    def forward(self: Any, input: Tensor) -> Tensor:
        return interpolate(
            input, self.size, self.scale_factor, self.mode, self.align_corners, self.recompute_scale_factor
        )


class Upsample(_Upsample, nn.Upsample):
    """`torch.nn.Upsample` with a hand-written backward."""


class UpsamplingNearest2d(_Upsample, nn.UpsamplingNearest2d):
    """`torch.nn.UpsamplingNearest2d` with a hand-written backward."""


class UpsamplingBilinear2d(_Upsample, nn.UpsamplingBilinear2d):
    """`torch.nn.UpsamplingBilinear2d` with a hand-written backward."""


def _samples() -> Iterable[Sample]:
    image = randn(2, 2, 4, 5)
    yield Sample(kwargs={"scale_factor": 2}, inputs=(image,), label="nearest")
    yield Sample(kwargs={"size": 7, "mode": "linear"}, inputs=(randn(2, 2, 3),), label="linear")
    corners = {"scale_factor": (1.7, 0.6), "mode": "bilinear", "align_corners": True}
    yield Sample(kwargs=corners, inputs=(image,), label="bilinear, corners")
    yield Sample(kwargs={"scale_factor": 1.6, "mode": "bicubic"}, inputs=(image,), label="bicubic")
    volume = randn(1, 2, 3, 2, 4)
    yield Sample(kwargs={"size": (2, 5, 3), "mode": "trilinear"}, inputs=(volume,), label="trilinear")
    yield Sample(kwargs={"size": 3, "mode": "area"}, inputs=(image,), label="area")


def _twofold() -> Iterable[Sample]:
    yield Sample(kwargs={"scale_factor": 2}, inputs=(randn(2, 2, 4, 5),))
    yield Sample(kwargs={"size": (3, 7)}, inputs=(randn(2, 2, 4, 5),), label="size")


def _spec(
    module: type[nn.Module], reference: type[nn.Module], samples: Callable[[], Iterable[Sample]], alias: str
) -> LayerSpec:
    return LayerSpec(
        name=module.__name__,
        module=module,
        reference=reference,
        samples=samples,
        saves="nothing",
        saved_bytes=lambda module, inputs, output: 0,
        aliases=(alias,),
        summary="resampling of an image's axes",
    )


SPECS = (
    _spec(Upsample, nn.Upsample, _samples, "interpolate"),
    _spec(UpsamplingNearest2d, nn.UpsamplingNearest2d, _twofold, "upsample_nearest"),
    _spec(UpsamplingBilinear2d, nn.UpsamplingBilinear2d, _twofold, "upsample_bilinear"),
)
