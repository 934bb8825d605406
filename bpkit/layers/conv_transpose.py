"""ConvTranspose1d, ConvTranspose2d, ConvTranspose3d: what a convolution's backward does to δ, as a forward.

    y[n,i,q] = Σ_{o,k} x[n,o,p] w[o,i,k] + b[i]   over p with s p + d k - a = q     ∂T/∂x of `convolution.py`

whose letters these are: o is the channel that comes in and i the one that goes out. With γ = ∂L/∂y:

    ∂L/∂x[n,o,p] = Σ_{i,k} γ[n,i, s p + d k - a] w[o,i,k]           ∂T/∂δ, a convolution of γ
    ∂L/∂w[o,i,k] = Σ_{n,p} x[n,o,p] γ[n,i, s p + d k - a]           ∂T/∂w: γ and x in the roles of x and δ
    ∂L/∂b[i]     = Σ_{n,q} γ[n,i,q]

and of complex x and w the conjugates. `output_padding` lengthens y. From s on (torch allows that where d is
larger) the convolution of γ has further positions p; in the sums x is zero there.

Saved: x (w is a parameter).
Source: Zeiler, Krishnan, Taylor & Fergus, "Deconvolutional networks", CVPR 2010; Dumoulin & Visin, 2016.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from bpkit.core.code import own_code
from bpkit.core.function import Function
from bpkit.core.layout import channels_last, laid_out
from bpkit.core.module import Handwritten
from bpkit.core.refusal import refuse
from bpkit.core.spec import LayerSpec, Sample, nbytes, randn
from bpkit.layers.convolution import TRANSPOSE, Sizes, channel_sum, correlated, weight_gradient
from bpkit.layers.lazy import lazy_spec
from bpkit.layers.windows import per_axis


class ConvTransposeFunction(Function):
    """`(x [n, o, *p], w [o, i/groups, *k], b [i] | None, s, a, output_padding, groups, d) -> [n, i, *q]`."""

    autocast = {"cpu": "lower", "cuda": "lower"}

    @staticmethod
    def forward(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Sizes,
        padding: Sizes,
        output_padding: Sizes,
        groups: int,
        dilation: Sizes,
    ) -> Tensor:
        transpose = TRANSPOSE[len(stride)]
        return transpose(input, weight, bias, stride, padding, output_padding, groups, dilation)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, weight, _, stride, padding, output_padding, groups, dilation = inputs
        ctx.geometry = stride, padding, dilation, groups
        ctx.size = input.shape[2:]
        ctx.further = tuple(more // s for more, s in zip(output_padding, stride, strict=True))
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
            gamma = laid_out(grad_output, ctx.channels_last)
            grad_input = correlated(gamma, weight.conj(), *ctx.geometry)
            for axis, size in enumerate(ctx.size, start=2):
                grad_input = grad_input.narrow(axis, 0, size)
        if ctx.needs_input_grad[1]:
            delta = input.conj()
            if any(ctx.further):
                delta = F.pad(delta, [side for more in reversed(ctx.further) for side in (0, more)])
            grad_weight = weight_gradient(delta, grad_output, weight, *ctx.geometry)
        if ctx.needs_input_grad[2]:
            grad_bias = channel_sum(grad_output)
        return grad_input, grad_weight, grad_bias, None, None, None, None, None


def _functional(axes: int) -> Callable[..., Tensor]:
    native = TRANSPOSE[axes]

    def conv_transpose(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | Sizes = 1,
        padding: int | Sizes = 0,
        output_padding: int | Sizes = 0,
        groups: int = 1,
        dilation: int | Sizes = 1,
    ) -> Tensor:
        steps, spread, further = (per_axis(each, axes) for each in (stride, dilation, output_padding))
        fits = weight.dim() == axes + 2 and input.dim() in (axes + 1, axes + 2)
        if not fits or not len(steps) == len(spread) == len(further) == axes:
            refuse(native, input, weight, bias, stride, padding, output_padding, groups, dilation)
        batched = input if input.dim() == axes + 2 else input.unsqueeze(0)
        zeros = per_axis(padding, axes)
        output = ConvTransposeFunction.call(batched, weight, bias, steps, zeros, further, groups, spread)
        return output if batched is input else output.squeeze(0)

    conv_transpose.__name__ = conv_transpose.__qualname__ = f"conv_transpose{axes}d"
    conv_transpose.__doc__ = f"""`torch.nn.functional.conv_transpose{axes}d` with a hand-written backward.

    Args:
        input: `[n, in, *p]` or `[in, *p]`, with {axes} axes p.
        weight: `[in, out / groups, *k]`.
        bias: `[out]`.
        stride: distance of the output positions of neighbouring input positions.
        padding: positions left out on each side of the output.
        output_padding: positions added at the end of the output.
        groups: number of blocks of channels that do not mix.
        dilation: step of the taps.

    Returns:
        `[n, out, *q]` or `[out, *q]`.

    Raises:
        RuntimeError: shapes, dtypes or settings that do not go together, in torch's words.
    """
    return own_code(conv_transpose)


conv_transpose1d, conv_transpose2d, conv_transpose3d = _functional(1), _functional(2), _functional(3)
_CONV_TRANSPOSE = {1: conv_transpose1d, 2: conv_transpose2d, 3: conv_transpose3d}


def _forward(self: Any, input: Tensor, output_size: list[int] | None = None) -> Tensor:
    axes = len(self.kernel_size)
    if self.padding_mode != "zeros":
        raise ValueError(f"Only `zeros` padding mode is supported for ConvTranspose{axes}d")
    more = self._output_padding(
        input, output_size, self.stride, self.padding, self.kernel_size, axes, self.dilation
    )
    conv = _CONV_TRANSPOSE[axes]
    return conv(input, self.weight, self.bias, self.stride, self.padding, more, self.groups, self.dilation)


class ConvTranspose1d(Handwritten, nn.ConvTranspose1d):
    """`torch.nn.ConvTranspose1d` with a hand-written backward."""

    forward = _forward


class ConvTranspose2d(Handwritten, nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d` with a hand-written backward."""

    forward = _forward


class ConvTranspose3d(Handwritten, nn.ConvTranspose3d):
    """`torch.nn.ConvTranspose3d` with a hand-written backward."""

    forward = _forward


class LazyConvTranspose1d(nn.LazyConvTranspose1d, ConvTranspose1d):  # type: ignore[misc]
    """`torch.nn.LazyConvTranspose1d`, which becomes a hand-written `ConvTranspose1d` on its first call."""

    cls_to_become = ConvTranspose1d


class LazyConvTranspose2d(nn.LazyConvTranspose2d, ConvTranspose2d):  # type: ignore[misc]
    """`torch.nn.LazyConvTranspose2d`, which becomes a hand-written `ConvTranspose2d` on its first call."""

    cls_to_become = ConvTranspose2d


class LazyConvTranspose3d(nn.LazyConvTranspose3d, ConvTranspose3d):  # type: ignore[misc]
    """`torch.nn.LazyConvTranspose3d`, which becomes a hand-written `ConvTranspose3d` on its first call."""

    cls_to_become = ConvTranspose3d


def _samples(axes: int) -> Iterable[Sample]:
    def last(*sizes: int) -> Sizes:
        return sizes[3 - axes :]

    yield Sample(args=(2, 3, last(1, 2, 3)), inputs=(randn(2, 2, *last(2, 3, 2)),), label="plain")
    settings: dict[str, Any] = {
        "stride": last(1, 3, 2),
        "padding": last(0, 1, 0),
        "output_padding": last(0, 1, 1),
    }
    inputs = (randn(1, 1, *last(2, 2, 3)),)
    yield Sample(args=(1, 3, last(1, 3, 2)), kwargs=settings, inputs=inputs, label="stride")
    settings = {"groups": 2, "bias": False}
    yield Sample(args=(4, 2, last(1, 1, 2)), kwargs=settings, inputs=(randn(2, 4, *last(1, 2, 3)),))
    settings = {"dilation": 3, "stride": last(1, 1, 2), "padding": 1, "output_padding": 2}
    inputs = (randn(1, 1, *last(1, 2, 3)),)
    yield Sample(args=(1, 1, 2), kwargs=settings, inputs=inputs, label="output padding of a stride and more")
    settings = {"stride": 2}
    given = (randn(1, *last(2, 2, 2)), [5] * axes)
    yield Sample(args=(1, 1, 3), kwargs=settings, inputs=given, label="unbatched, output size")


def _spec(module: type[nn.Module], axes: int) -> LayerSpec:
    return LayerSpec(
        name=module.__name__,
        module=module,
        reference=module.__bases__[-1],
        samples=partial(_samples, axes),
        saves="input",
        saved_bytes=lambda module, inputs, output: nbytes(inputs[0]),
        aliases=(f"conv_transpose{axes}d",),
        summary=f"transposed convolution over {axes} axes" if axes > 1 else "transposed convolution",
    )


_KINDS = (ConvTranspose1d, ConvTranspose2d, ConvTranspose3d)
_PLAIN = tuple(_spec(module, axes) for axes, module in enumerate(_KINDS, start=1))
_LAZY = (LazyConvTranspose1d, LazyConvTranspose2d, LazyConvTranspose3d)
SPECS = _PLAIN + tuple(lazy_spec(module, plain) for module, plain in zip(_LAZY, _PLAIN, strict=True))
