"""Dropout: each element is zeroed with probability p, the others scaled so that the mean stays.

    y[k] = m[k] x[k] / (1 - p),   m[k] ~ Bernoulli(1 - p)                  k: any position
    ∂L/∂x[k] = m[k] δ[k] / (1 - p)

Saved: m, one byte an element (torch keeps a mask in the input's dtype on CPU: four times that).
The mask is drawn by torch's kernel from torch's generator, so it is torch's own mask.
Source: Srivastava, Hinton, Krizhevsky, Sutskever & Salakhutdinov, "Dropout", JMLR 2014.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bpkit.core.function import Function
from bpkit.core.fuse import formula
from bpkit.core.module import Handwritten
from bpkit.core.spec import LayerSpec, Sample, randn


@formula
def _gradient(grad_output: Tensor, mask: Tensor, scale: float) -> Tensor:
    return grad_output * mask * scale


class DropoutFunction(Function):
    """`(x [*], p) -> (y [*], mask [*])`."""

    @staticmethod
    def forward(input: Tensor, p: float) -> tuple[Tensor, Tensor]:
        return torch.native_dropout(input, p, True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        _, p = inputs
        _, mask = output
        ctx.mark_non_differentiable(mask)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(mask)
        ctx.scale = 0.0 if p == 1 else 1 / (1 - p)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, _: None) -> tuple[Tensor | None, None]:
        if grad_output is None:
            return None, None
        (mask,) = ctx.saved_tensors
        return _gradient(grad_output, mask, ctx.scale), None


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """`torch.nn.functional.dropout` with a hand-written backward.

    Args:
        input: `[*]`, any shape.
        p: the probability of a zero.
        training: draw a mask; else `input` itself is returned.
        inplace: write the result into `input`.

    Returns:
        `[*]`.

    Raises:
        ValueError: p outside [0, 1].
    """
    if p < 0.0 or p > 1.0:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
    if not training or p == 0 or input.numel() == 0:
        return input
    output = DropoutFunction.call(input, p)[0]
    return input.copy_(output) if inplace else output


class Dropout(Handwritten, nn.Dropout):
    """`torch.nn.Dropout` with a hand-written backward."""

    def forward(self, input: Tensor) -> Tensor:
        return dropout(input, self.p, self.training, self.inplace)


def _samples() -> Iterable[Sample]:
    yield Sample(args=(0.4,), inputs=(randn(5, 6),))
    yield Sample(args=(1.0,), inputs=(randn(3, 2),), label="p=1")
    yield Sample(args=(0.4,), inputs=(randn(3, 2),), train=False, label="eval")


SPECS = (
    LayerSpec(
        name="Dropout",
        module=Dropout,
        reference=nn.Dropout,
        samples=_samples,
        saves="mask, a byte an element",
        saved_bytes=lambda module, inputs, output: output.numel() if module.training else 0,
        random=True,
        aliases=("dropout",),
        summary="random zeros",
    ),
)
