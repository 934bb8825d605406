"""The example of a learning rule that `bpkit new-plugin` writes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bpkit import Function, Handwritten, RuleSpec, hookimpl


class SignFunction(Function):
    """`(x [*, in], w [out, in], b [out] | None) -> [*, out]`: Linear, whose error goes down through sign(w).

        ∂L/∂w and ∂L/∂b as they are          what goes down: δ sign(w) mean|w|, in place of δ w

    Saved: x and w.
    Source: Liao, Leibo & Poggio, "How important is weight symmetry in backpropagation?", 2016.
    """

    @staticmethod
    def forward(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return nn.functional.linear(input, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, weight, _ = inputs
        ctx.save_for_backward(input, weight)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # what torch would differentiate here is the true w again
            raise RuntimeError("mine.sign has no second derivative: no create_graph, no torch.func")
        input, weight = ctx.saved_tensors
        rows, columns = grad_output.flatten(0, -2), input.flatten(0, -2)
        grad_input = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_input = grad_output @ weight.sign() * weight.abs().mean()
        if ctx.needs_input_grad[1]:
            grad_weight = rows.mT @ columns
        if ctx.needs_input_grad[2]:
            grad_bias = rows.sum(0)
        return grad_input, grad_weight, grad_bias


class SignLinear(Handwritten, nn.Linear):
    """Linear under the rule: `bpkit.convert` gives a model's own layers this class, and `revert` takes it."""

    def forward(self, input: Tensor) -> Tensor:
        """`[*, in] -> [*, out]`."""
        rows = input[None] if input.dim() == 1 else input
        output: Tensor = SignFunction.call(rows, self.weight, self.bias)
        return output[0] if input.dim() == 1 else output


@hookimpl
def bpkit_rules() -> Iterable[RuleSpec]:
    """The rules: each proven to keep within the angles to the true gradient that it declares."""
    return [
        RuleSpec(
            name="mine.sign",
            modules={nn.Linear: SignLinear},
            angle=0.01,
            input_angle=60.0,
            summary="the error goes down through the signs of the weights",
        )
    ]
