"""What a mutant is, and the right Functions that most of them change one line of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import Function


@dataclass(frozen=True)
class Mutant:
    """A target with one known defect.

    Attributes:
        function: the target.
        inputs: what it is verified with: small, so that the checker has to find the rest.
        reference: the right mathematics, or None where the defect must be found without.
        check: the check meant for it.
        status: how that check ends: only economy and purity warn.
        story: the report or library that the defect is drawn from.
    """

    function: Any
    inputs: tuple[Any, ...]
    reference: Callable[..., Any] | None
    check: str
    status: Literal["fail", "warn"] = "fail"
    story: str = ""

    @property
    def name(self) -> str:
        """The target's own name, and what tells two mutants of one target apart."""
        return name_of(self.function) + ("" if self.reference or not self.inputs else ", no reference")


@dataclass(frozen=True)
class Unusual:
    """A right target that a checker could be tempted to refuse, and the checks that are skipped for it."""

    function: Any
    inputs: tuple[Any, ...]
    reference: Callable[..., Any] | None
    skipped: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """The target's own name."""
        return name_of(self.function)


def name_of(target: Any) -> str:
    """What a Function, an operator, a spec, a module or a plain function is called."""
    for attribute in ("__name__", "_qualname", "name"):
        if isinstance(named := getattr(target, attribute, None), str):
            return named.split("::")[-1]
    return type(target).__name__


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


X, W, ROW = randn(4, 6), randn(4, 6, seed=1), randn(6, seed=2)


class Sin(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.sin()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output * ctx.saved_tensors[0].cos()


class Exp(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.exp()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output * ctx.saved_tensors[0]


class Product(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, w):
        return x * w

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad_output):
        x, w = ctx.saved_tensors
        return (
            grad_output * w if ctx.needs_input_grad[0] else None,
            grad_output * x if ctx.needs_input_grad[1] else None,
        )


class Scale(Function):
    """A row times every row of `x`, whatever axes are in front."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, row):
        return x * row

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad_output):
        x, row = ctx.saved_tensors
        return grad_output * row, (grad_output * x).sum_to_size(row.shape)


class RowSum(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.sum(-1)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output[..., None].expand_as(ctx.saved_tensors[0])


class Softmax(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.softmax(-1)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx, grad_output):
        (y,) = ctx.saved_tensors
        return y * (grad_output - (grad_output * y).sum(-1, keepdim=True))


class SinCos(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.sin(), x.cos()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx, grad_sin, grad_cos):
        (x,) = ctx.saved_tensors
        return grad_sin * x.cos() - grad_cos * x.sin()


def sin_cos(x):
    return x.sin(), x.cos()


def row_sum(x):
    return x.sum(-1)


def softmax(x):
    return x.softmax(-1)
