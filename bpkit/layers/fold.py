"""Unfold and Fold: the windows of an image as columns, and columns summed back into an image.

    Unfold    y[n, (c,k), p] = x[n, c, s p + d k - a]                               x is 0 outside
    Fold      y[n, c, q] = Σ_{k,p} x[n, (c,k), p]   over s p + d k - a = q

    n: batch, c: channel; p: window, k: place in it, q: place in the image, each two indices, (row, column);
    s: stride, d: dilation, a: padding.

Both are linear and neither has an entry but 0 and 1: as a matrix, each is the other's transpose. So the
gradient of either is the other one of δ.

Saved: nothing.
Source: Chellapilla, Puri & Simard, "High performance convolutional neural networks for document
processing", IWFHR 2006.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bpkit.core.function import Function
from bpkit.core.module import Handwritten
from bpkit.core.spec import LayerSpec, Sample, randn

Pair = tuple[int, ...]

_unfold, _fold = torch._C._nn.im2col, torch._C._nn.col2im


class UnfoldFunction(Function):
    """`(x [n, c, *q] or [c, *q], k, d, a, s) -> [n, c k, p] or [c k, p]`."""

    @staticmethod
    def forward(input: Tensor, kernel_size: Pair, dilation: Pair, padding: Pair, stride: Pair) -> Tensor:
        return _unfold(input, kernel_size, dilation, padding, stride)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, *ctx.geometry = inputs
        ctx.size = tuple(input.shape[-2:])

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        return _fold(grad_output, ctx.size, *ctx.geometry), None, None, None, None


class FoldFunction(Function):
    """`(x [n, c k, p] or [c k, p], size, k, d, a, s) -> [n, c, *size] or [c, *size]`."""

    @staticmethod
    def forward(
        input: Tensor, output_size: Pair, kernel_size: Pair, dilation: Pair, padding: Pair, stride: Pair
    ) -> Tensor:
        return _fold(input, output_size, kernel_size, dilation, padding, stride)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, _, *ctx.geometry = inputs

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        return _unfold(grad_output, *ctx.geometry), None, None, None, None, None


def unfold(
    input: Tensor,
    kernel_size: int | Pair,
    dilation: int | Pair = 1,
    padding: int | Pair = 0,
    stride: int | Pair = 1,
) -> Tensor:
    """`torch.nn.functional.unfold` with a hand-written backward.

    Args:
        input: `[n, c, h, w]` or `[c, h, w]`.
        kernel_size: rows and columns of a window.
        dilation: step within a window.
        padding: zeros on each side.
        stride: step between windows.

    Returns:
        `[n, c · rows · columns, windows]` or the same without n.

    Raises:
        RuntimeError: sizes that do not go together, in torch's words.
    """
    return UnfoldFunction.call(input, *map(_pair, (kernel_size, dilation, padding, stride)))


def fold(
    input: Tensor,
    output_size: int | Pair,
    kernel_size: int | Pair,
    dilation: int | Pair = 1,
    padding: int | Pair = 0,
    stride: int | Pair = 1,
) -> Tensor:
    """`torch.nn.functional.fold` with a hand-written backward.

    Args:
        input: `[n, c · rows · columns, windows]` or the same without n.
        output_size: rows and columns of the image.
        kernel_size: rows and columns of a window.
        dilation: step within a window.
        padding: places on each side that are left out of the image.
        stride: step between windows.

    Returns:
        `[n, c, h, w]` or `[c, h, w]`.

    Raises:
        RuntimeError: sizes that do not go together, in torch's words.
    """
    return FoldFunction.call(input, *map(_pair, (output_size, kernel_size, dilation, padding, stride)))


def _pair(value: Any) -> Pair:
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


class Unfold(Handwritten, nn.Unfold):
    """`torch.nn.Unfold` with a hand-written backward."""

    def forward(self, input: Tensor) -> Tensor:
        return unfold(input, self.kernel_size, self.dilation, self.padding, self.stride)


class Fold(Handwritten, nn.Fold):
    """`torch.nn.Fold` with a hand-written backward."""

    def forward(self, input: Tensor) -> Tensor:
        size, kernel_size = self.output_size, self.kernel_size
        return fold(input, size, kernel_size, self.dilation, self.padding, self.stride)


_SETTINGS: dict[str, Any] = {"stride": (2, 1), "dilation": (1, 2), "padding": (1, 0)}


def _unfold_samples() -> Iterable[Sample]:
    yield Sample(args=(2,), inputs=(randn(2, 3, 4, 3),))
    yield Sample(args=((2, 3),), kwargs=_SETTINGS, inputs=(randn(2, 1, 5, 6),), label="stride, dilation")
    yield Sample(args=(2,), kwargs={"padding": 1}, inputs=(randn(2, 3, 3),), label="unbatched")


def _fold_samples() -> Iterable[Sample]:
    yield Sample(args=((4, 3), 2), inputs=(randn(2, 12, 6),))
    inputs = (randn(2, 6, 6),)
    yield Sample(args=((5, 6), (2, 3)), kwargs=_SETTINGS, inputs=inputs, label="stride, dilation")
    yield Sample(args=(3, 2), kwargs={"padding": 1}, inputs=(randn(8, 16),), label="unbatched")


SPECS = (
    LayerSpec(
        name="Unfold",
        module=Unfold,
        reference=nn.Unfold,
        samples=_unfold_samples,
        saves="nothing",
        saved_bytes=lambda module, inputs, output: 0,
        aliases=("unfold",),
        summary="the windows of an image as columns",
    ),
    LayerSpec(
        name="Fold",
        module=Fold,
        reference=nn.Fold,
        samples=_fold_samples,
        saves="nothing",
        saved_bytes=lambda module, inputs, output: 0,
        aliases=("fold",),
        summary="columns summed into an image",
    ),
)
