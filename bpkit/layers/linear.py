"""Linear: an affine map of the last axis.

    y[n,o] = Σᵢ x[n,i] w[o,i] + b[o]                        n: all leading axes, i: in, o: out

With δ = ∂L/∂y:

    ∂L/∂x[n,i] = Σₒ δ[n,o] w[o,i]                           δ w
    ∂L/∂w[o,i] = Σₙ δ[n,o] x[n,i]                           δᵀ x
    ∂L/∂b[o]   = Σₙ δ[n,o]

Saved: x, when w wants a gradient (w itself is a parameter, and costs nothing).
Source: Rumelhart, Hinton & Williams, "Learning representations by back-propagating errors", 1986.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bpkit.core.function import Function
from bpkit.core.holomorphic import conjugates
from bpkit.core.module import Handwritten
from bpkit.core.spec import LayerSpec, Sample, nbytes, randn
from bpkit.layers.lazy import lazy_spec


class LinearFunction(Function):
    """`(x [*, in], w [out, in], b [out] | None) -> [*, out]`."""

    autocast = {"cpu": "lower", "cuda": "lower"}

    @staticmethod
    def forward(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if input.dim() > 2 and (bias is None or bias.dim() == 1):
            # Torch's own would be a view, which nobody could write to.
            rows = nn.functional.linear(_rows(input), weight, bias)
            return torch.ops.aten._unsafe_view(rows, (*input.shape[:-1], weight.shape[0]))
        return nn.functional.linear(input, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, weight, bias = inputs
        ctx.bias_shape = None if bias is None else bias.shape
        ctx.save_for_backward(
            input if ctx.needs_input_grad[1] else None, weight if ctx.needs_input_grad[0] else None
        )

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = conjugates(ctx.saved_tensors)
        grad_input = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_input = grad_output @ weight  #                               δ w [*, in]
        if not (ctx.needs_input_grad[1] or ctx.needs_input_grad[2]):
            return grad_input, None, None
        rows = _rows(grad_output)  #                                           δ [n, out]
        if ctx.needs_input_grad[1]:
            grad_weight = rows.mT @ _rows(input)  #                            δᵀ x [out, in]
        if ctx.needs_input_grad[2]:
            grad_bias = rows.sum(0)  #                                         [out]
            if ctx.bias_shape != grad_bias.shape:  # torch broadcasts any bias
                grad_bias = grad_output.sum_to_size(ctx.bias_shape)
        return grad_input, grad_weight, grad_bias


def _rows(tensor: Tensor) -> Tensor:
    """[*, k] as [n, k]."""
    *leading, features = tensor.shape
    return tensor.reshape(math.prod(leading), features)


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear` with a hand-written backward.

    Args:
        input: `[*, in]`.
        weight: `[out, in]`, or `[in]` for an output without that axis.
        bias: `[out]`, or a scalar beside a weight of one axis.

    Returns:
        `[*, out]`.

    Raises:
        RuntimeError: shapes or dtypes that do not go together, in torch's words.
    """
    if input.dim() == 1 and weight.dim() == 2:  # of one row torch makes a view, which nobody could write to
        return LinearFunction.call(input[None], weight, bias).squeeze(0)
    if weight.dim() == 1:
        return LinearFunction.call(input, weight[None], bias if bias is None else bias[None]).squeeze(-1)
    return LinearFunction.call(input, weight, bias)


class Linear(Handwritten, nn.Linear):
    """`torch.nn.Linear` with a hand-written backward."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


class LazyLinear(nn.LazyLinear, Linear):
    """`torch.nn.LazyLinear`, which becomes a hand-written `Linear` on its first call."""

    cls_to_become = Linear


def _samples() -> Iterable[Sample]:
    yield Sample(args=(3, 4), inputs=(randn(5, 3),))
    yield Sample(args=(3, 2), kwargs={"bias": False}, inputs=(randn(2, 4, 3),), label="no bias")
    yield Sample(args=(3, 4), inputs=(randn(3),), label="unbatched")


_LINEAR = LayerSpec(
    name="Linear",
    module=Linear,
    reference=nn.Linear,
    samples=_samples,
    saves="input",
    saved_bytes=lambda module, inputs, output: nbytes(inputs[0]),
    aliases=("linear",),
    summary="affine map of the last axis",
)
SPECS = (_LINEAR, lazy_spec(LazyLinear, _LINEAR))
