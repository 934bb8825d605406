"""Activations with more than an x: PReLU's slope is learned, RReLU's is drawn, GLU's gate is half its input.

    PReLU   y[n,c,k] = x if x > 0 else w[c] x             n: batch, c: channel, k: further axes
            ∂L/∂x = δ (x > 0: 1, else w[c])               ∂L/∂w[c] = Σ_{n,k} δ[n,c,k] min(x[n,c,k], 0)

    RReLU   y[k] = s[k] x[k],  s[k] = 1 if x > 0, else drawn from U(lower, upper) (in evaluation: their mean)
            ∂L/∂x[k] = s[k] δ[k]

    GLU     y = a σ(b),  a and b the halves of x along one axis
            ∂L/∂a = δ σ(b)                                ∂L/∂b = δ a σ(b) (1 - σ(b))

Saved: x (and w, a parameter) · s · x.
The slopes are drawn by torch's kernel from torch's generator.
Sources: He et al., "Delving deep into rectifiers", 2015; Xu et al., "Empirical evaluation of rectified
activations", 2015; Dauphin et al., "Language modeling with gated convolutional networks", 2017.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bpkit.core.function import Function
from bpkit.core.fuse import formula
from bpkit.core.inplace import overwrite
from bpkit.core.module import Handwritten
from bpkit.core.precision import in_float32, widen
from bpkit.core.spec import LayerSpec, Sample, nbytes, randn
from bpkit.layers.rectifiers import leaky_relu


@formula
def _prelu_gradients(
    grad_output: Tensor, input: Tensor, weight: Tensor, needs: tuple[bool, bool], axes: list[int]
) -> tuple[Tensor | None, Tensor | None]:
    """∂L/∂x [*], and ∂L/∂w summed over `axes`; `weight` is shaped to be broadcast."""
    delta, x = widen(grad_output), widen(input)
    grad_input = grad_weight = None
    if needs[0]:
        grad_input = torch.where(x > 0, delta, delta * widen(weight)).to(input.dtype)
    if needs[1]:
        products = torch.where(x > 0, 0.0, delta * x)
        grad_weight = (products.sum(axes) if axes else products).to(weight.dtype)
    return grad_input, grad_weight


class PReLUFunction(Function):
    """`(x [n, c, *], w [c] or [1]) -> [n, c, *]`."""

    autocast = {"cpu": "lower", "cuda": "lower"}

    @staticmethod
    def forward(input: Tensor, weight: Tensor) -> Tensor:
        return torch.prelu(input, weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        shared = weight.numel() == 1
        channel = 1 if input.dim() > 1 else 0
        shape = [1 if shared or axis != channel else -1 for axis in range(input.dim())]
        axes = [axis for axis in range(input.dim()) if shared or axis != channel]
        grad_input, grad_weight = _prelu_gradients(
            grad_output, input, weight.reshape(shape), ctx.needs_input_grad, axes
        )
        return grad_input, None if grad_weight is None else grad_weight.reshape(weight.shape)


class RReLUFunction(Function):
    """`(x [*], lower, upper) -> (y [*], s [*])`, in training."""

    @staticmethod
    def forward(input: Tensor, lower: float, upper: float) -> tuple[Tensor, Tensor]:
        slopes = torch.empty_like(input, memory_format=torch.contiguous_format)
        output = torch.ops.aten.rrelu_with_noise(input, slopes, lower, upper, True)
        return output, slopes

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, _: None) -> tuple[Tensor | None, None, None]:
        return None if grad_output is None else grad_output * ctx.saved_tensors[0], None, None


@formula
@in_float32
def _glu_gradient(grad_output: Tensor, input: Tensor, dim: int) -> Tensor:
    value, gate = input.chunk(2, dim)
    s = torch.sigmoid(gate)
    scaled = grad_output * s
    return torch.cat((scaled, scaled * value * (1 - s)), dim)


class GLUFunction(Function):
    """`(x [*, 2 h, *], dim) -> [*, h, *]`."""

    @staticmethod
    def forward(input: Tensor, dim: int) -> Tensor:
        return F.glu(input, dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.dim = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        return _glu_gradient(grad_output, ctx.saved_tensors[0], ctx.dim), None


def prelu(input: Tensor, weight: Tensor) -> Tensor:
    """`torch.nn.functional.prelu` with a hand-written backward.

    Args:
        input: `[n, c, *]`.
        weight: `[c]` or `[1]`, the slope below zero.

    Returns:
        `[n, c, *]`.

    Raises:
        RuntimeError: sizes or dtypes that do not go together, in torch's words.
    """
    return PReLUFunction.call(input, weight)


def rrelu(
    input: Tensor,
    lower: float = 1.0 / 8,
    upper: float = 1.0 / 3,
    training: bool = False,
    inplace: bool = False,
) -> Tensor:
    """`torch.nn.functional.rrelu` with a hand-written backward.

    Args:
        input: `[*]`.
        lower: the smallest slope below zero.
        upper: the largest.
        training: draw a slope for each element; else take the middle.
        inplace: write the result into `input`.

    Returns:
        `[*]`.
    """
    if not training:
        return leaky_relu(input, (lower + upper) / 2, inplace)
    output: Tensor = RReLUFunction.call(input, lower, upper)[0]
    return overwrite(input, output) if inplace else output


def rrelu_(input: Tensor, lower: float = 1.0 / 8, upper: float = 1.0 / 3, training: bool = False) -> Tensor:
    """`rrelu`, in place."""
    return rrelu(input, lower, upper, training, True)


def glu(input: Tensor, dim: int = -1) -> Tensor:
    """`torch.nn.functional.glu` with a hand-written backward: `[*, 2 h, *]` to `[*, h, *]` along `dim`."""
    if input.dim() == 0:
        raise RuntimeError("glu does not support scalars because halving size must be even")
    return GLUFunction.call(input, dim)


class PReLU(Handwritten, nn.PReLU):
    """`torch.nn.PReLU` with a hand-written backward."""

    def forward(self, input: Tensor) -> Tensor:
        return prelu(input, self.weight)


class RReLU(Handwritten, nn.RReLU):
    """`torch.nn.RReLU` with a hand-written backward."""

    def forward(self, input: Tensor) -> Tensor:
        return rrelu(input, self.lower, self.upper, self.training, self.inplace)


class GLU(Handwritten, nn.GLU):
    """`torch.nn.GLU` with a hand-written backward."""

    def forward(self, input: Tensor) -> Tensor:
        return glu(input, self.dim)


def _prelu_samples() -> Iterable[Sample]:
    yield Sample(inputs=(randn(3, 4),))
    yield Sample(args=(3,), inputs=(randn(2, 3, 2, 2),), label="a slope a channel")
    yield Sample(args=(4,), inputs=(randn(2, 4),), label="vectors")


def _rrelu_samples() -> Iterable[Sample]:
    yield Sample(inputs=(randn(5, 6),))
    yield Sample(args=(0.2, 0.6), inputs=(randn(3, 4),), train=False, label="eval")


def _glu_samples() -> Iterable[Sample]:
    yield Sample(inputs=(randn(3, 6),))
    yield Sample(args=(1,), inputs=(randn(2, 4, 3),), label="inner axis")


SPECS = (
    LayerSpec(
        name="PReLU",
        module=PReLU,
        reference=nn.PReLU,
        samples=_prelu_samples,
        saves="input",
        saved_bytes=lambda module, inputs, output: nbytes(output),
        aliases=("prelu",),
        summary="a learned slope below zero",
    ),
    LayerSpec(
        name="RReLU",
        module=RReLU,
        reference=nn.RReLU,
        samples=_rrelu_samples,
        saves="slopes",
        saved_bytes=lambda module, inputs, output: nbytes(output),
        random=True,
        aliases=("rrelu",),
        summary="a random slope below zero",
    ),
    LayerSpec(
        name="GLU",
        module=GLU,
        reference=nn.GLU,
        samples=_glu_samples,
        saves="input",
        saved_bytes=lambda module, inputs, output: nbytes(inputs[0]),
        aliases=("glu",),
        summary="half of the input, gated by the other",
    ),
)
