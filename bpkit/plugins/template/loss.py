"""The example of a loss that `bpkit new-plugin` writes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bpkit import Function, Handwritten, LossSpec, Sample, hookimpl
from bpkit.core.spec import nbytes, randn


def _log_cosh(input: Tensor, target: Tensor) -> Tensor:
    """Mean of ln cosh(x - t), by ln(eᶻ + e⁻ᶻ) - ln 2, which does not overflow."""
    z = input - target
    return (torch.logaddexp(z, -z) - math.log(2)).mean()


class LogCoshFunction(Function):
    """`(x [*], t [*]) -> []`: the mean of ln cosh(x - t), a square near 0 and |x - t| - ln 2 far from it.

        ∂L/∂x[k] = δ/m tanh(x[k] - t[k]),  ∂L/∂t = -∂L/∂x          k: any of m positions,  δ = ∂L/∂loss

    Saved: x and t. Source: Green, "Bayesian reconstructions from emission tomography data", 1990.
    """

    @staticmethod
    def forward(input: Tensor, target: Tensor) -> Tensor:
        return _log_cosh(input, target)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, Tensor | None]:
        input, target = ctx.saved_tensors
        grad_input = torch.tanh(input - target) * (grad_output / max(1, input.numel()))
        wanted = ctx.needs_input_grad
        return grad_input if wanted[0] else None, -grad_input if wanted[1] else None


class PlainLogCosh(nn.Module):
    """The same in plain torch: what the proof compares with, and `bpkit.convert` replaces."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """`[*], [*] -> []`."""
        if input.shape != target.shape:
            raise ValueError(f"input and target must have one shape, not {input.shape} and {target.shape}")
        return _log_cosh(input, target)


class LogCosh(Handwritten, PlainLogCosh):
    """Log-cosh loss with a hand-written backward."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """`[*], [*] -> []`."""
        if input.shape != target.shape:
            raise ValueError(f"input and target must have one shape, not {input.shape} and {target.shape}")
        loss: Tensor = LogCoshFunction.call(input, target)
        return loss


def _log_cosh_samples() -> Iterable[Sample]:
    yield Sample(inputs=(randn(4, 3), randn(4, 3, seed=1)))
    yield Sample(inputs=(5 * randn(7), randn(7, seed=1)), label="far from the target")


@hookimpl
def bpkit_losses() -> Iterable[LossSpec]:
    """The losses: each proven by `bpkit verify`, against its reference, on its samples."""
    return [
        LossSpec(
            name="mine.log_cosh",
            module=LogCosh,
            reference=PlainLogCosh,
            samples=_log_cosh_samples,
            saves="input and target",
            saved_bytes=lambda module, inputs, output: nbytes(*inputs),
            summary="a square near 0, an absolute value far from it",
        )
    ]
