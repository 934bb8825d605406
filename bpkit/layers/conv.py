"""Conv1d, Conv2d, Conv3d: a bank of filters over n axes (a correlation, as everywhere in deep learning).

    y[n,o,p] = Σ_{i,k} x[n,i, s p + d k - a] w[o,i,k] + b[o]                  ∂T/∂δ of `convolution.py`

whose letters these are. With δ = ∂L/∂y:

    ∂L/∂x[n,i,q] = Σ_{o,k} δ[n,o,p] w[o,i,k]   over p with s p + d k - a = q  ∂T/∂x, a transposed convolution
    ∂L/∂w[o,i,k] = Σ_{n,p} δ[n,o,p] x[n,i, s p + d k - a]                     ∂T/∂w, a correlation of x with δ
    ∂L/∂b[o]     = Σ_{n,p} δ[n,o,p]

and of complex x and w the conjugates.

Saved: x (w is a parameter).
Source: as there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from torch import Tensor, nn

from bpkit.core.code import own_code
from bpkit.core.function import Function
from bpkit.core.layout import channels_last, laid_out
from bpkit.core.module import Handwritten
from bpkit.core.refusal import refuse
from bpkit.core.spec import LayerSpec, Sample, nbytes, randn
from bpkit.layers.convolution import CORRELATE, Sizes, channel_sum, transposed, weight_gradient
from bpkit.layers.lazy import lazy_spec
from bpkit.layers.padding import pad
from bpkit.layers.windows import per_axis


class ConvFunction(Function):
    """`(x [n, i, *q], w [o, i/groups, *k], b [o] | None, s, a, d, groups) -> [n, o, *p]`."""

    autocast = {"cpu": "lower", "cuda": "lower"}

    @staticmethod
    def forward(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Sizes,
        padding: Sizes,
        dilation: Sizes,
        groups: int,
    ) -> Tensor:
        return CORRELATE[len(stride)](input, weight, bias, stride, padding, dilation, groups)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, weight, _, *ctx.geometry = inputs
        ctx.size = input.shape[2:]
        ctx.channels_last = channels_last(input) or channels_last(weight)
        ctx.save_for_backward(
            input if ctx.needs_input_grad[1] else None,
            weight if ctx.needs_input_grad[0] or ctx.needs_input_grad[1] else None,
        )

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        grad_input = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            delta = laid_out(grad_output, ctx.channels_last)
            grad_input = transposed(delta, weight.conj(), ctx.size, *ctx.geometry)
        if ctx.needs_input_grad[1]:
            grad_weight = weight_gradient(grad_output, input.conj(), weight, *ctx.geometry)
        if ctx.needs_input_grad[2]:
            grad_bias = channel_sum(grad_output)
        return grad_input, grad_weight, grad_bias, None, None, None, None


def _functional(axes: int) -> Callable[..., Tensor]:
    native = CORRELATE[axes]

    def conv(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | Sizes = 1,
        padding: str | int | Sizes = 0,
        dilation: int | Sizes = 1,
        groups: int = 1,
    ) -> Tensor:
        steps, spread = per_axis(stride, axes), per_axis(dilation, axes)
        fits = weight.dim() == axes + 2 and input.dim() in (axes + 1, axes + 2)
        fits = fits and len(steps) == len(spread) == axes
        if isinstance(padding, str):
            fits = fits and padding in ("same", "valid") and not (padding == "same" and steps != (1,) * axes)
        if not fits:
            refuse(native, input, weight, bias, stride, padding, dilation, groups)
        if isinstance(padding, str):
            total = [0] * axes
            if padding == "same":
                total = [d * (k - 1) for d, k in zip(spread, weight.shape[2:], strict=True)]
            if any(each % 2 for each in total):  # one more at the end: torch, too, pads first
                input = pad(input, [side for each in reversed(total) for side in (0, each % 2)])
            padding = tuple(each // 2 for each in total)
        batched = input if input.dim() == axes + 2 else input.unsqueeze(0)
        output = ConvFunction.call(batched, weight, bias, steps, per_axis(padding, axes), spread, groups)
        return output if batched is input else output.squeeze(0)

    conv.__name__ = conv.__qualname__ = f"conv{axes}d"
    conv.__doc__ = f"""`torch.nn.functional.conv{axes}d` with a hand-written backward.

    Args:
        input: `[n, in, *q]` or `[in, *q]`, with {axes} axes q.
        weight: `[out, in / groups, *k]`.
        bias: `[out]`.
        stride: step of the output positions.
        padding: zeros on each side, `"valid"` (none) or `"same"`.
        dilation: step of the taps.
        groups: number of blocks of channels that do not mix.

    Returns:
        `[n, out, *p]` or `[out, *p]`.

    Raises:
        RuntimeError: shapes, dtypes or settings that do not go together, in torch's words.
    """
    return own_code(conv)


conv1d, conv2d, conv3d = _functional(1), _functional(2), _functional(3)
_CONV = {1: conv1d, 2: conv2d, 3: conv3d}


def _forward(self: Any, input: Tensor) -> Tensor:
    padding = self.padding
    if self.padding_mode != "zeros":
        input, padding = pad(input, self._reversed_padding_repeated_twice, self.padding_mode), 0
    conv = _CONV[len(self.kernel_size)]
    return conv(input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)


class Conv1d(Handwritten, nn.Conv1d):
    """`torch.nn.Conv1d` with a hand-written backward."""

    forward = _forward


class Conv2d(Handwritten, nn.Conv2d):
    """`torch.nn.Conv2d` with a hand-written backward."""

    forward = _forward


class Conv3d(Handwritten, nn.Conv3d):
    """`torch.nn.Conv3d` with a hand-written backward."""

    forward = _forward


class LazyConv1d(nn.LazyConv1d, Conv1d):  # type: ignore[misc]
    """`torch.nn.LazyConv1d`, which becomes a hand-written `Conv1d` on its first call."""

    cls_to_become = Conv1d


class LazyConv2d(nn.LazyConv2d, Conv2d):  # type: ignore[misc]
    """`torch.nn.LazyConv2d`, which becomes a hand-written `Conv2d` on its first call."""

    cls_to_become = Conv2d


class LazyConv3d(nn.LazyConv3d, Conv3d):  # type: ignore[misc]
    """`torch.nn.LazyConv3d`, which becomes a hand-written `Conv3d` on its first call."""

    cls_to_become = Conv3d


def _samples(axes: int) -> Iterable[Sample]:
    """The last axes of up to three: settings that differ between axes differ in every pair of them."""

    def last(*sizes: int) -> Sizes:
        return sizes[3 - axes :]

    yield Sample(args=(2, 3, last(2, 3, 3)), inputs=(randn(2, 2, *last(2, 4, 3)),), label="plain")
    settings: dict[str, Any] = {"stride": last(1, 2, 2), "padding": last(0, 1, 0), "dilation": last(2, 1, 2)}
    inputs = (randn(2, 1, *last(3, 5, 6)),)
    yield Sample(args=(1, 2, last(2, 2, 2)), kwargs=settings, inputs=inputs, label="stride, dilation")
    settings = {"groups": 2, "bias": False}
    yield Sample(args=(4, 2, last(1, 1, 2)), kwargs=settings, inputs=(randn(2, 4, *last(1, 2, 3)),))
    settings = {"padding": "same", "padding_mode": "reflect"}
    inputs = (randn(2, 1, *last(2, 3, 4)),)
    yield Sample(args=(1, 1, last(1, 2, 3)), kwargs=settings, inputs=inputs, label="same, reflect")
    settings = {"padding": "same"}
    yield Sample(args=(1, 1, 2), kwargs=settings, inputs=(randn(1, 1, *last(2, 3, 3)),), label="same, even")
    yield Sample(args=(1, 1, 2), kwargs={"padding": 1}, inputs=(randn(1, *last(2, 3, 3)),), label="unbatched")


def _saved_bytes(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> int:
    (input,) = inputs
    if module.padding_mode == "zeros" and not isinstance(module.padding, str):
        return nbytes(input)
    sides: Any = module._reversed_padding_repeated_twice
    axes = len(sides) // 2
    padded = [
        size + left + right
        for size, left, right in zip(input.shape[-axes:], sides[-2::-2], sides[::-2], strict=True)
    ]
    return nbytes(input) // max(math.prod(input.shape[-axes:]), 1) * math.prod(padded)


def _spec(module: type[nn.Module], axes: int) -> LayerSpec:
    return LayerSpec(
        name=module.__name__,
        module=module,
        reference=module.__bases__[-1],
        samples=partial(_samples, axes),
        saves="input (padded, where the padding is not zeros)",
        saved_bytes=_saved_bytes,
        aliases=(f"conv{axes}d",),
        summary=f"convolution over {axes} axes" if axes > 1 else "convolution over one axis",
    )


_PLAIN = tuple(_spec(module, axes) for axes, module in enumerate((Conv1d, Conv2d, Conv3d), start=1))
_LAZY = (LazyConv1d, LazyConv2d, LazyConv3d)
SPECS = _PLAIN + tuple(lazy_spec(module, plain) for module, plain in zip(_LAZY, _PLAIN, strict=True))
