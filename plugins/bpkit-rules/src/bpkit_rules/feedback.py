"""Feedback alignment and sign-symmetry: Linear, whose error goes down by another matrix than its weights.

    y[n,o] = Σᵢ x[n,i] w[o,i] + b[o]                              n: all leading axes, i: in, o: out

    ∂L/∂w, ∂L/∂b as they are, from the δ that arrives             δ = what the rule calls ∂L/∂y
    what goes down: Σₒ δ[n,o] B[o,i]                              in place of Σₒ δ[n,o] w[o,i]

*Feedback alignment*: B is random and fixed, of standard deviation 1/√out, so that δ keeps its size. To the true
gradient that is 90° at first; w aligns itself with B while it learns.
*Sign-symmetry*: B = sign(w) mean|w|. For normal w that is arccos √(2/π) = 37°.

Saved: x and w. Sources: Lillicrap, Cownden, Tweed & Akerman, "Random synaptic feedback weights support error
backpropagation for deep learning", 2016; Liao, Leibo & Poggio, "How important is weight symmetry in
backpropagation?", 2016.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from bpkit import Function, Handwritten, RuleSpec
from torch import Tensor, nn

from bpkit_rules.angle import Record, record_of
from bpkit_rules.refuse import check_backward, check_forward


class FeedbackFunction(Function):
    """`(x [*, in], w [out, in], b [out] | None, B [out, in] | None, ...) -> [*, out]`; without B, sign(w) mean|w|."""

    autocast: ClassVar = {"cpu": "lower", "cuda": "lower"}

    @staticmethod
    def forward(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        feedback: Tensor | None,
        rule: str,
        record: Record | None,
    ) -> Tensor:
        return nn.functional.linear(input, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, weight, _, feedback, ctx.rule, ctx.record = inputs
        ctx.save_for_backward(input, weight, feedback)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        check_backward(ctx.rule)
        input, weight, feedback = ctx.saved_tensors
        grad_input = None
        if ctx.needs_input_grad[0]:
            back = weight.sign() * weight.abs().mean() if feedback is None else feedback
            grad_input = grad_output @ back.to(grad_output.dtype)
            if ctx.record is not None:
                ctx.record.note(grad_input, grad_output @ weight)
        return grad_input, *affine_gradients(ctx, grad_output, input), None, None, None


def affine_gradients(ctx: Any, grad_output: Tensor, input: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """∂L/∂w = δᵀ x and ∂L/∂b = Σₙ δ, the true ones for the δ that arrives."""
    rows = grad_output.flatten(0, -2)
    grad_weight = rows.mT @ input.flatten(0, -2) if ctx.needs_input_grad[1] else None
    return grad_weight, rows.sum(0) if ctx.needs_input_grad[2] else None


@dataclass
class Feedback:
    """What a layer keeps under the rule: its place in the model, from which its matrix follows.

    It is drawn from the place alone, so that a run that is resumed, and every rank, has the same.
    """

    place: int = 0
    matrix: Tensor | None = None

    def like(self, weight: Tensor, rows: int) -> Tensor:
        """The matrix `[rows, in]`, where and in what the weight is."""
        if self.matrix is None or self.matrix.shape != (rows, weight.shape[1]):
            generator = torch.Generator().manual_seed(1 + self.place)
            drawn = torch.randn(rows, weight.shape[1], generator=generator, device="cpu", dtype=torch.float32)
            self.matrix = drawn / rows**0.5
        if self.matrix.device != weight.device or self.matrix.dtype != weight.dtype:
            self.matrix = self.matrix.to(weight.device, weight.dtype)
        return self.matrix


class FeedbackLinear(Handwritten, nn.Linear):
    """Linear under feedback alignment."""

    rule_name: ClassVar[str] = "feedback"

    def forward(self, input: Tensor) -> Tensor:
        """`[*, in] -> [*, out]`."""
        check_forward(self.rule_name, input, self.weight, self.bias)
        rows = input[None] if input.dim() == 1 else input
        feedback = self._feedback()
        output: Tensor = FeedbackFunction.call(
            rows, self.weight, self.bias, feedback, self.rule_name, record_of(self.weight)
        )
        return output[0] if input.dim() == 1 else output

    def _feedback(self) -> Tensor | None:
        if self.rule is None:
            self.rule = Feedback()
        return self.rule.like(self.weight, self.out_features)


class SignLinear(FeedbackLinear):
    """Linear under sign-symmetry."""

    rule_name = "sign_symmetry"

    def _feedback(self) -> Tensor | None:
        return None


def prepare(model: nn.Module) -> None:
    """Each layer has a matrix of its own."""
    layers = [module for module in model.modules() if type(module) is FeedbackLinear]
    for place, layer in enumerate(layers):
        layer.rule = Feedback(place)


RULES = (
    RuleSpec(
        name="feedback",
        aliases=("feedback_alignment",),
        modules={nn.Linear: FeedbackLinear},
        angle=0.01,
        prepare=prepare,
        summary="a fixed random matrix in place of the weights on the way back; 90° off at first",
    ),
    RuleSpec(
        name="sign_symmetry",
        modules={nn.Linear: SignLinear},
        angle=0.01,
        input_angle=60.0,
        summary="the signs of the weights in their place on the way back; about 37° off",
    ),
)
