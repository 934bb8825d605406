"""grid_sample: an image read at any places; affine_grid: the places of an affine map.

    y[n,c,p] = Σ_k W[n,p,k] x[n,c,q(n,p,k)]       W[n,p,k] = Π_a w(t_a(n,p), k_a)
    ∂L/∂x[n,c,q] = Σ_{p,k: q(n,p,k) = q} W[n,p,k] δ[n,c,p]
    ∂L/∂g[n,p,a] = ∂i_a/∂g_a Σ_k w'(t_a, k_a) Π_{b≠a} w(t_b, k_b) Σ_c δ[n,c,p] x[n,c,q(n,p,k)]

    n: batch, c: channel, p: output position, a: axis of the image, k: tap, one number an axis.

The place g_a in [-1, 1] is i_a in pixels, ((g + 1) L - 1)/2 or, corners aligned, (g + 1) (L - 1)/2, then
clipped (`"border"`) or folded (`"reflection"`) into the image; t_a is its part behind the point. Taps are the
nearest pixel (w = 1, w' = 0), the two around (1 - t and t), or four (Keys' cubic, whose taps are clipped and
folded one by one). A tap outside the image reads zero.

affine_grid is g[n,p] = θ[n] (p, 1), so ∂L/∂θ[n,a,b] = Σ_p δ[n,p,a] (p, 1)[b].

Saved: x and g; for affine_grid nothing.
Source: Jaderberg et al., "Spatial transformer networks", 2015; Keys, 1981.
"""

from __future__ import annotations

import itertools
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from bpkit.core.function import Function
from bpkit.core.precision import widen
from bpkit.layers.windows import scatter_add


class Tap(NamedTuple):
    """One tap along one axis, each `[n, p]`: its pixel, whether that lies in the image, w and w'."""

    pixel: Tensor
    inside: Tensor
    weight: Tensor
    slope: Tensor


class GridSampleFunction(Function):
    """`(x [n, c, *q], g [n, *p, axes], mode, padding_mode, align_corners) -> y [n, c, *p]`."""

    autocast = {"cpu": "fp32", "cuda": "promote"}

    @staticmethod
    def forward(input: Tensor, grid: Tensor, mode: str, padding_mode: str, align_corners: bool) -> Tensor:
        return F.grid_sample(input, grid, mode, padding_mode, align_corners)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, grid, *ctx.settings = inputs
        ctx.save_for_backward(input, grid)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        saved, grid = ctx.saved_tensors
        input, axes = widen(saved).flatten(2), saved.dim() - 2
        delta = widen(grad_output).flatten(2)  #                                                   [n, c, p]
        size = saved.shape[2:]
        places = widen(grid).reshape(len(grid), delta.shape[2], axes)
        taps, factors = [], []
        for axis in range(axes):  # the grid names the last axis first
            axis_taps, factor = _taps(places[..., axes - 1 - axis], size[axis], *ctx.settings)
            taps.append(axis_taps)
            factors.append(factor)
        grad_input = torch.zeros_like(input) if ctx.needs_input_grad[0] else None
        slopes: list[Tensor] = [torch.zeros_like(places[..., 0]) for _ in range(axes)]
        for corner in itertools.product(*taps):
            inside = corner[0].inside
            at = corner[0].pixel
            for axis in range(1, axes):
                inside, at = inside & corner[axis].inside, at * size[axis] + corner[axis].pixel
            at = at.unsqueeze(1).expand(delta.shape)
            if grad_input is not None:
                weight = torch.where(inside, _product([tap.weight for tap in corner]), 0)
                grad_input = scatter_add(grad_input, at, delta * weight.unsqueeze(1))
            if ctx.needs_input_grad[1] and ctx.settings[0] != "nearest":
                value = torch.where(inside, (delta * input.gather(2, at)).sum(1), 0)
                for axis in range(axes):
                    others = [tap.slope if a == axis else tap.weight for a, tap in enumerate(corner)]
                    slopes[axis] = slopes[axis] + value * _product(others)
        grad_grid = None
        if ctx.needs_input_grad[1]:
            each = [slopes[axis] * factors[axis] for axis in reversed(range(axes))]
            grad_grid = torch.stack(each, -1).reshape(grid.shape).to(grid.dtype)
        if grad_input is not None:
            grad_input = grad_input.reshape(saved.shape).to(saved.dtype)
        return grad_input, grad_grid, None, None, None


def _product(factors: list[Tensor]) -> Tensor:
    product = factors[0]
    for each in factors[1:]:
        product = product * each
    return product


def _taps(
    place: Tensor, size: int, mode: str, padding_mode: str, align_corners: bool
) -> tuple[list[Tap], Tensor | float]:
    """The taps along one axis of `size` pixels, and ∂i/∂g."""
    factor: Tensor | float = (size - 1) / 2 if align_corners else size / 2
    point = (place + 1) / 2 * (size - 1) if align_corners else ((place + 1) * size - 1) / 2
    if mode != "bicubic":
        point, kept = _into_image(point, size, padding_mode, align_corners)
        factor = factor * kept
    if mode == "nearest":
        return [_tap(point.round(), torch.ones_like(point), torch.zeros_like(point), size)], factor
    start = point.floor()
    t = point - start.detach()
    if mode == "bilinear":
        one = torch.ones_like(t)
        return [_tap(start, 1 - t, -one, size), _tap(start + 1, t, one, size)], factor
    weights = _cubic(t)
    pixels = (_into_image(start + k, size, padding_mode, align_corners)[0] for k in (-1, 0, 1, 2))
    return [_tap(pixel, *each, size) for pixel, each in zip(pixels, weights, strict=True)], factor


def _tap(pixel: Tensor, weight: Tensor, slope: Tensor, size: int) -> Tap:
    inside = (pixel >= 0) & (pixel <= size - 1)  # not so for NaN
    return Tap(torch.where(inside, pixel, 0).long(), inside, weight, slope)


def _into_image(point: Tensor, size: int, padding_mode: str, align_corners: bool) -> tuple[Tensor, Tensor]:
    """A point moved into the image as the padding has it, and the derivative: 1, -1, or 0 where clipped."""
    kept = torch.ones_like(point)
    if padding_mode == "zeros":
        return point, kept
    if padding_mode == "reflection":
        low, span = (0.0, size - 1) if align_corners else (-0.5, size)
        if span == 0:
            return torch.zeros_like(point), torch.zeros_like(point)
        before = point < low
        distance = torch.where(before, low - point, point - low)
        folds = (distance / span).floor().detach()
        rest = torch.fmod(distance, span)
        even = torch.fmod(folds, 2) == 0
        point = torch.where(even, rest, span - rest) + low
        kept = torch.where(before == even, -kept, kept)
    kept = torch.where((point > 0) & (point < size - 1), kept, 0)
    point = torch.where(point > 0, point, 0)  # NaN becomes 0
    return torch.where(point < size - 1, point, size - 1), kept


def _cubic(t: Tensor, a: float = -0.75) -> list[tuple[Tensor, Tensor]]:
    """For each of four taps w and w', the distances being 1 + t, t, 1 - t, 2 - t."""

    def near(x: Tensor) -> tuple[Tensor, Tensor]:
        return ((a + 2) * x - (a + 3)) * x * x + 1, (3 * (a + 2) * x - 2 * (a + 3)) * x

    def far(x: Tensor) -> tuple[Tensor, Tensor]:
        return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a, (3 * a * x - 10 * a) * x + 8 * a

    def behind(weight: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        return weight, -slope

    return [far(1 + t), near(t), behind(*near(1 - t)), behind(*far(2 - t))]


def grid_sample(
    input: Tensor,
    grid: Tensor,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool | None = None,
) -> Tensor:
    """`torch.nn.functional.grid_sample` with a hand-written backward.

    Args:
        input: `[n, c, h, w]` or `[n, c, d, h, w]`.
        grid: `[n, *, 2]` or `[n, *, 3]`, places in [-1, 1], the last axis of the image first.
        mode: `"bilinear"`, `"nearest"`, or for images `"bicubic"`.
        padding_mode: `"zeros"`, `"border"` or `"reflection"`, what lies outside.
        align_corners: whether ±1 are the middles of the corner pixels, not their edges.

    Returns:
        `[n, c, *]`.

    Raises:
        ValueError: an unknown mode.
        RuntimeError: shapes that do not go together, in torch's words.
    """
    return GridSampleFunction.call(input, grid, mode, padding_mode, _corners(align_corners))


def _corners(align_corners: bool | None) -> bool:
    if align_corners is None:
        warnings.warn(
            "Default grid_sample and affine_grid behavior has changed to align_corners=False since 1.3.0. "
            "Please specify align_corners=True if the old behavior is desired. "
            "See the documentation of grid_sample for details.",
            stacklevel=3,
        )
    return bool(align_corners)


class AffineGridFunction(Function):
    """`(θ [n, axes, axes + 1], size, align_corners) -> g [n, *p, axes]`."""

    autocast = {"cpu": "lower", "cuda": "lower"}

    @staticmethod
    def forward(theta: Tensor, size: Any, align_corners: bool) -> Tensor:
        return F.affine_grid(theta, size, align_corners)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.size, ctx.align = inputs

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        axes = grad_output.shape[-1]
        identity = torch.eye(axes, axes + 1, dtype=grad_output.dtype, device=grad_output.device)
        base = torch.affine_grid_generator(identity[None], [1, *ctx.size[1:]], ctx.align).reshape(-1, axes)
        base = torch.cat(
            (base, torch.ones_like(base[:, :1])), 1
        )  #                               [p, axes + 1]
        delta = grad_output.reshape(len(grad_output), len(base), axes)
        return delta.transpose(1, 2) @ base, None, None


def affine_grid(theta: Tensor, size: list[int], align_corners: bool | None = None) -> Tensor:
    """`torch.nn.functional.affine_grid` with a hand-written backward.

    Args:
        theta: `[n, 2, 3]` or `[n, 3, 4]`, a map of each image.
        size: of the image that is to be read, `[n, c, *]`.
        align_corners: whether ±1 are the middles of the corner pixels, not their edges.

    Returns:
        `[n, *, 2]` or `[n, *, 3]`.

    Raises:
        ValueError: a map that does not fit the size.
        NotImplementedError: a size of other than four or five axes.
    """
    return AffineGridFunction.call(theta, size, _corners(align_corners))
