"""Bilinear: a form in two inputs for each output feature.

    y[n,o] = Σ_{i,j} x[n,i] w[o,i,j] z[n,j] + b[o]           n: all leading axes, o: out, i, j: in

With δ = ∂L/∂y:

    ∂L/∂x[n,i]   = Σ_{o,j} (δ[n,o] z[n,j]) w[o,i,j]          one matrix product over (o,j)
    ∂L/∂z[n,j]   = Σ_{o,i} (δ[n,o] x[n,i]) w[o,i,j]          one over (o,i)
    ∂L/∂w[o,i,j] = Σ_n     (δ[n,o] x[n,i]) z[n,j]            one over n
    ∂L/∂b[o]     = Σ_n δ[n,o]

The bracketed products would be o times an input if formed at once; a few o at a time they stay in cache.

Saved: x and z (w is a parameter).
Source: Tenenbaum & Freeman, "Separating style and content with bilinear models", Neural Computation 2000.
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
from bpkit.core.refusal import refuse
from bpkit.core.spec import LayerSpec, Sample, nbytes, randn

# Elements of an intermediate that is formed at once.
_BLOCK = 1 << 20


class BilinearFunction(Function):
    """`(x [n, i], z [n, j], w [o, i, j], b [o] | None) -> [n, o]`."""

    autocast = {"cuda": "promote"}

    @staticmethod
    def forward(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        n, width = input2.shape
        column = input2[:, :, None]
        parts = []
        for some in weight.split(_step(n * width)):
            right = some.transpose(0, 1)  #                                          [i, o, j]
            forms = (input1 @ right.flatten(1)).reshape(n, right.shape[1], width)  # [n, o, j]
            parts.append((forms @ column).squeeze(2))  #                             [n, o]
        output = torch.cat(parts, 1)  # of one part, too: a view would be barred from in-place use
        return output if bias is None else output + bias

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input1, input2, weight, _ = inputs
        first, second, of_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(
            input1 if second or of_weight else None,
            input2 if first or of_weight else None,
            weight if first or second else None,
        )

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        input1, input2, weight = conjugates(ctx.saved_tensors)
        first, second, of_weight, of_bias = ctx.needs_input_grad
        grad_input1 = grad_input2 = grad_weight = None
        if first:  #                                                                 [n, o j] [o j, i]
            grad_input1 = _summed(grad_output, input2, weight.transpose(1, 2))
        if second:  #                                                                [n, o i] [o i, j]
            grad_input2 = _summed(grad_output, input1, weight)
        if of_weight:
            widths = input1.shape[1], input2.shape[1]
            parts = [
                (_outer(some, input1).mT @ input2).reshape(some.shape[1], *widths)
                for some in grad_output.split(_step(input1.numel()), 1)
            ]
            grad_weight = torch.cat(parts) if len(parts) > 1 else parts[0]
        grad_bias = grad_output.sum(0) if of_bias else None
        return grad_input1, grad_input2, grad_weight, grad_bias


def _summed(delta: Tensor, input: Tensor, weight: Tensor) -> Tensor:
    """Σ_{o,i} δ[n,o] x[n,i] w[o,i,j], [n, j]."""
    step = _step(input.numel())
    products = [
        _outer(some, input) @ its.flatten(0, 1)
        for some, its in zip(delta.split(step, 1), weight.split(step), strict=True)
    ]
    return sum(products[1:], products[0])


def _outer(delta: Tensor, input: Tensor) -> Tensor:
    """δ[n,o] x[n,i], [n, o i]."""
    return (delta[:, :, None] * input[:, None, :]).reshape(len(input), delta.shape[1] * input.shape[1])


def _step(elements: int) -> int:
    """How many output features keep `elements` of each within `_BLOCK`."""
    return max(1, _BLOCK // max(1, elements))


def bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.bilinear` with a hand-written backward.

    Args:
        input1: `[*, in1]`.
        input2: `[*, in2]`, with the same leading axes.
        weight: `[out, in1, in2]`.
        bias: `[out]`.

    Returns:
        `[*, out]`.

    Raises:
        RuntimeError: shapes or dtypes that do not go together, in torch's words.
    """
    *leading, in1 = input1.shape or (0,)
    fits = input2.shape[:-1] == input1.shape[:-1] and input1.dim() == input2.dim() > 0
    fits = fits and weight.dim() == 3 and weight.shape[1:] == (in1, input2.shape[-1])
    if not fits or not (bias is None or bias.shape == weight.shape[:1]):
        refuse(torch.bilinear, input1, input2, weight, bias)
    n = math.prod(leading)
    rows1, rows2 = (each.reshape(n, each.shape[-1]) for each in (input1, input2))
    output: Tensor = BilinearFunction.call(rows1, rows2, weight, bias)
    return output.reshape(*leading, weight.shape[0])


class Bilinear(Handwritten, nn.Bilinear):
    """`torch.nn.Bilinear` with a hand-written backward."""

    def forward(self, input1: Tensor, input2: Tensor) -> Tensor:
        return bilinear(input1, input2, self.weight, self.bias)


def _samples() -> Iterable[Sample]:
    yield Sample(args=(3, 2, 4), inputs=(randn(5, 3), randn(5, 2, seed=1)))
    inputs = (randn(2, 3, 2), randn(2, 3, 3, seed=1))
    yield Sample(args=(2, 3, 2), kwargs={"bias": False}, inputs=inputs, label="no bias")
    yield Sample(args=(3, 2, 2), inputs=(randn(3), randn(2, seed=1)), label="unbatched")


SPECS = (
    LayerSpec(
        name="Bilinear",
        module=Bilinear,
        reference=nn.Bilinear,
        samples=_samples,
        saves="both inputs",
        saved_bytes=lambda module, inputs, output: nbytes(*inputs),
        aliases=("bilinear",),
        summary="a form in two inputs for each output feature",
    ),
)
