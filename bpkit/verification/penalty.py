"""A regularizer as a case: its value is the forward, its hand-written gradient the backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bpkit.core.spec import randn
from bpkit.verification.case import Case


class Penalty(torch.autograd.Function):
    """`(parameter [*], regularizer) -> []`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(parameter: Tensor, regularizer: Any) -> Tensor:
        value: Tensor = regularizer.value(parameter)
        return value

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.regularizer = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        (parameter,) = ctx.saved_tensors
        return grad_output * ctx.regularizer.gradient(parameter), None


def penalty_case(regularizer: Any, label: str) -> Case:
    """The gradient that `regularizer` writes down, against autograd's of its value."""
    return Case(
        label=label,
        forward=lambda parameter: (Penalty.apply(parameter, regularizer),),  # type: ignore[no-untyped-call]
        reference=lambda parameter: (regularizer.value(parameter),),
        values=(randn(4, 3),),
        names=("parameter",),
        differentiable=(0,),
        parameters=frozenset({0}),
        strict=True,
    )
