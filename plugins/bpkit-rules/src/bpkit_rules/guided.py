"""Guided backprop: ReLU that hands down positive errors alone, to see what excites a unit.

    y[k] = max(x[k], 0)          what goes down: δ[k] [y[k] > 0] [δ[k] > 0]          k: any position

in place of δ[k] [y[k] > 0]. For errors that are as often negative that is 45° from the truth, a ReLU. It is for
pictures of what the input's gradient shows, and no rule to train by.

Saved: y, as torch's ReLU does.
Source: Springenberg, Dosovitskiy, Brox & Riedmiller, "Striving for simplicity: the all convolutional net", 2015.
"""

from __future__ import annotations

from typing import Any

import torch
from bpkit import Function, Handwritten, RuleSpec
from torch import Tensor, nn

from bpkit_rules.refuse import check_backward, check_forward


class GuidedFunction(Function):
    """`[*] -> [*]`."""

    @staticmethod
    def forward(input: Tensor) -> Tensor:
        return torch.relu(input)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        check_backward("guided")
        (output,) = ctx.saved_tensors
        return torch.where(output > 0, grad_output.clamp(min=0), 0)


class GuidedReLU(Handwritten, nn.ReLU):
    """ReLU under guided backprop."""

    def forward(self, input: Tensor) -> Tensor:
        """`[*] -> [*]`."""
        check_forward("guided", input)
        output: Tensor = GuidedFunction.call(input)
        return input.copy_(output) if self.inplace else output


RULES = (
    RuleSpec(
        name="guided",
        modules={nn.ReLU: GuidedReLU},
        angle=0.0,
        input_angle=75.0,
        summary="ReLU that hands down positive errors alone; about 45° off",
    ),
)
