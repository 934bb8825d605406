"""Conv2d: a bank of filters over the plane (a correlation, as everywhere in deep learning).

    y[n,o,p] = Σ_{i,k} x[n,i, s p + d k - a] w[o,i,k] + b[o]

    n: batch, i: in channel, o: out channel; p: output position, k: tap, both pairs (row, column);
    s: stride, d: dilation, a: padding (x is 0 outside).  With groups, o reads the i of its own group.

    ∂L/∂x[n,i,q] = Σ_{o,k} δ[n,o,p] w[o,i,k]  over p with s p + d k - a = q      a transposed convolution
    ∂L/∂w[o,i,k] = Σ_{n,p} δ[n,o,p] x[n,i, s p + d k - a]                        a correlation of x with δ
    ∂L/∂b[o]     = Σ_{n,p} δ[n,o,p]

The second is itself a convolution: batch and channel swap roles, as do stride and dilation. That is
`_correlate`, and what a double backward differentiates. Where no graph is wanted, the vendor's kernel
computes the same sum (`core/purity.py`, with the measurement).

Saved: x (w is a parameter).
Source: LeCun et al., "Backpropagation applied to handwritten zip code recognition", 1989; Dumoulin &
Visin, "A guide to convolution arithmetic for deep learning", 2016, ch. 4.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bpkit.core.function import Function
from bpkit.core.layout import channels_last, laid_out
from bpkit.core.module import Handwritten
from bpkit.core.purity import correlate_weight
from bpkit.core.spec import LayerSpec, Sample, nbytes, randn

Pair = tuple[int, ...]


class Conv2dFunction(Function):
    """`(x [n, i, h, w], w [o, i/groups, kh, kw], b [o] | None, s, a, d, groups) -> [n, o, h', w']`."""

    autocast = {"cpu": "lower", "cuda": "lower"}

    @staticmethod
    def forward(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Pair,
        padding: Pair,
        dilation: Pair,
        groups: int,
    ) -> Tensor:
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, weight, _, ctx.stride, ctx.padding, ctx.dilation, ctx.groups = inputs
        ctx.size = input.shape[-2:]
        ctx.channels_last = channels_last(input) or channels_last(weight)
        ctx.save_for_backward(
            input if ctx.needs_input_grad[1] else None,
            weight if ctx.needs_input_grad[0] or ctx.needs_input_grad[1] else None,
        )

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        geometry = (ctx.stride, ctx.padding, ctx.dilation, ctx.groups)
        grad_input = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_input = _transpose(laid_out(grad_output, ctx.channels_last), weight, ctx.size, *geometry)
        if ctx.needs_input_grad[1]:
            correlate = _correlate if torch.is_grad_enabled() else correlate_weight
            grad_weight = correlate(grad_output, input, weight, *geometry)
        if ctx.needs_input_grad[2]:
            grad_bias = grad_output.sum((0, 2, 3))
        return grad_input, grad_weight, grad_bias, None, None, None, None


def _transpose(
    grad_output: Tensor,
    weight: Tensor,
    size: torch.Size,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
) -> Tensor:
    """∂L/∂x, [n, i, h, w]; rows that the stride leaves over at the end get zeros."""
    left_over = tuple(
        size[axis]
        - ((grad_output.shape[2 + axis] - 1) * stride[axis] - 2 * padding[axis])
        - (dilation[axis] * (weight.shape[2 + axis] - 1) + 1)
        for axis in (0, 1)
    )
    return F.conv_transpose2d(grad_output, weight, None, stride, padding, left_over, groups, dilation)


def _correlate(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
) -> Tensor:
    """∂L/∂w, [o, i/groups, kh, kw], as a convolution of x by δ: i is the batch and n the channel."""
    if not input.numel():
        return torch.zeros_like(weight)
    n, channels = input.shape[:2]
    swapped = input.reshape(n, groups, channels // groups, *input.shape[2:])
    swapped = swapped.permute(2, 1, 0, 3, 4).flatten(1, 2)  #                [i/g, g n, h, w]
    kernel = grad_output.transpose(0, 1)  #                                  [o, n, h', w']
    taps = F.conv2d(swapped, kernel, None, dilation, padding, stride, groups)
    rows, columns = weight.shape[2:]  # what the stride left over would be further taps
    return taps.transpose(0, 1)[:, :, :rows, :columns]


class ExtendFunction(Function):
    """`(x [*, h, w], rows [h'], columns [w']) -> [*, h', w']`: x[rows][:, columns], rows repeating.

    y[p,q] = x[r[p], c[q]]   gives   ∂L/∂x[i,j] = Σ_{p,q} [r[p] = i] [c[q] = j] δ[p,q].
    """

    @staticmethod
    def forward(input: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        return input.index_select(-2, rows).index_select(-1, columns)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, rows, columns = inputs
        ctx.size = input.shape[-2:]
        ctx.save_for_backward(rows, columns)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        rows, columns = ctx.saved_tensors
        height, width = ctx.size
        *leading, tall, _ = grad_output.shape
        by_column = grad_output.new_zeros(*leading, tall, width).index_add(-1, columns, grad_output)
        return by_column.new_zeros(*leading, height, width).index_add(-2, rows, by_column), None, None


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Pair = 1,
    padding: str | int | Pair = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
) -> Tensor:
    """`torch.nn.functional.conv2d` with a hand-written backward.

    Args:
        input: `[n, in, h, w]` or `[in, h, w]`.
        weight: `[out, in / groups, kh, kw]`.
        bias: `[out]`.
        stride: step of the output positions.
        padding: rows and columns of zeros on each side, `"valid"` (none) or `"same"`.
        dilation: step of the taps.
        groups: number of blocks of channels that do not mix.

    Returns:
        `[n, out, h', w']` or `[out, h', w']`.

    Raises:
        RuntimeError: shapes, dtypes or settings that do not go together, in torch's words.
    """
    if input.dim() not in (3, 4) or weight.dim() != 4:
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)  # raises
    if any(len(_pair(each)) != 2 for each in (stride, dilation)):
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)  # raises
    stride, dilation = _pair(stride), _pair(dilation)
    if isinstance(padding, str):
        if padding not in ("same", "valid") or (padding == "same" and stride != (1, 1)):
            return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)  # raises
        total: Any = (0, 0)
        if padding == "same":
            total = tuple(dilation[axis] * (weight.shape[2 + axis] - 1) for axis in (0, 1))
        if any(each % 2 for each in total):  # one more at the end: torch, too, pads first
            input = F.pad(input, (0, total[1] % 2, 0, total[0] % 2))
        padding = (total[0] // 2, total[1] // 2)
    batched = input if input.dim() == 4 else input.unsqueeze(0)
    output = Conv2dFunction.call(batched, weight, bias, stride, _pair(padding), dilation, groups)
    return output if input.dim() == 4 else output.squeeze(0)


class Conv2d(Handwritten, nn.Conv2d):
    """`torch.nn.Conv2d` with a hand-written backward."""

    def forward(self, input: Tensor) -> Tensor:
        padding: str | int | Pair = self.padding
        if self.padding_mode != "zeros":
            left, right, top, bottom = self._reversed_padding_repeated_twice
            rows = _extended(input.shape[-2], (top, bottom), self.padding_mode, input.device)
            columns = _extended(input.shape[-1], (left, right), self.padding_mode, input.device)
            input, padding = ExtendFunction.call(input, rows, columns), 0
        return conv2d(input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)


def _extended(size: int, sides: Pair, mode: str, device: torch.device) -> Tensor:
    """Which of `size` positions each position of a padded axis repeats."""
    positions = torch.arange(size, device=device, dtype=torch.float64)
    return F.pad(positions[None, None], sides, mode)[0, 0].long()


def _pair(value: Any) -> Pair:
    if isinstance(value, (tuple, list)):
        return tuple(value) * 2 if len(value) == 1 else tuple(value)
    return value, value


def _samples() -> Iterable[Sample]:
    yield Sample(args=(2, 3, 3), inputs=(randn(2, 2, 4, 3),), label="3x3")
    settings = {"stride": 2, "padding": (1, 0), "dilation": (1, 2)}
    yield Sample(args=(1, 2, 2), kwargs=settings, inputs=(randn(2, 1, 5, 6),), label="stride, dilation")
    yield Sample(args=(4, 2, (1, 2)), kwargs={"groups": 2, "bias": False}, inputs=(randn(2, 4, 2, 3),))
    same = {"padding": "same", "padding_mode": "reflect"}
    yield Sample(args=(1, 1, (2, 3)), kwargs=same, inputs=(randn(2, 1, 3, 4),), label="same, reflect")
    yield Sample(args=(1, 1, 2), kwargs={"padding": 1}, inputs=(randn(1, 3, 3),), label="unbatched")


def _saved_bytes(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> int:
    (input,) = inputs
    left, right, top, bottom = module._reversed_padding_repeated_twice  # type: ignore[misc]
    tall, wide = input.shape[-2] + top + bottom, input.shape[-1] + left + right
    if module.padding_mode == "zeros" and not isinstance(module.padding, str):
        return nbytes(input)
    planes = input.numel() // (input.shape[-2] * input.shape[-1])
    return planes * tall * wide * input.element_size() + 8 * (tall + wide)


SPECS = (
    LayerSpec(
        name="Conv2d",
        module=Conv2d,
        reference=nn.Conv2d,
        samples=_samples,
        saves="input (padded, where the padding is not zeros)",
        saved_bytes=_saved_bytes,
        aliases=("conv2d",),
        summary="convolution of the plane",
    ),
)
