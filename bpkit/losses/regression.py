"""MSELoss and L1Loss: how far predictions are from numbers.

    l[k] = (x[k] - t[k])²        ∂l/∂x[k] = 2 (x[k] - t[k])              k: any position
    l[k] = |x[k] - t[k]|         ∂l/∂x[k] = sign(x[k] - t[k]),  0 at 0

and ∂l/∂t = -∂l/∂x in both. With the reduction, L = Σₖ l[k] / m, m = 1 (sum) or the number of elements
(mean), so that ∂L/∂x[k] = δ/m ∂l/∂x[k]; without one, δ has the shape of l and m = 1.

Saved: x and t.
Source: Gauss, "Theoria combinationis observationum", 1823 (squares); Laplace, 1774 (absolute values).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bpkit.core.function import Function
from bpkit.core.fuse import formula
from bpkit.core.module import Handwritten
from bpkit.core.precision import in_float32
from bpkit.core.spec import LossSpec, Sample, nbytes, randn
from bpkit.losses.reduction import MEAN, NONE, code, share


@formula
@in_float32
def _squared_gradient(grad_output: Tensor, input: Tensor, target: Tensor, reduction: int) -> Tensor:
    return (input - target) * (2 * share(grad_output, input, reduction))


@formula
@in_float32
def _absolute_gradient(grad_output: Tensor, input: Tensor, target: Tensor, reduction: int) -> Tensor:
    return (input - target).sgn() * share(grad_output, input, reduction)  # sgn: complex numbers, too


class MSEFunction(Function):
    """`(x [*], t [*], reduction) -> [] or [*]`."""

    autocast = {"cpu": "fp32", "cuda": "fp32"}

    @staticmethod
    def forward(input: Tensor, target: Tensor, reduction: int) -> Tensor:
        return torch._C._nn.mse_loss(input, target, reduction)  # type: ignore[arg-type]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, target, ctx.reduction = inputs
        ctx.save_for_backward(input, target)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        return _both(ctx, _squared_gradient, grad_output)


class L1Function(MSEFunction):
    """`(x [*], t [*], reduction) -> [] or [*]`."""

    @staticmethod
    def forward(input: Tensor, target: Tensor, reduction: int) -> Tensor:
        return torch._C._nn.l1_loss(input, target, reduction)  # type: ignore[arg-type]

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        return _both(ctx, _absolute_gradient, grad_output)


def _both(ctx: Any, gradient: Callable[..., Tensor], grad_output: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients of input and target, which differ in sign."""
    input, target = ctx.saved_tensors
    grad_input = gradient(grad_output, input, target, ctx.reduction)
    return (
        grad_input.to(input.dtype) if ctx.needs_input_grad[0] else None,
        -grad_input.to(target.dtype) if ctx.needs_input_grad[1] else None,
        None,
    )


def mse_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """`torch.nn.functional.mse_loss` with a hand-written backward.

    Args:
        input: `[*]`.
        target: `[*]`; another shape is broadcast, with torch's warning.
        size_average: deprecated, see `reduction`.
        reduce: deprecated, see `reduction`.
        reduction: `"none"`, `"mean"` or `"sum"`.
        weight: `[*]`, a factor for each element; the mean is then over the weights.

    Returns:
        A scalar, or `[*]` without a reduction.

    Raises:
        ValueError: an unknown reduction, or weights of another shape.
    """
    return _loss(MSEFunction, input, target, code(reduction, size_average, reduce), weight)


def l1_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """`torch.nn.functional.l1_loss` with a hand-written backward; arguments as `mse_loss`."""
    return _loss(L1Function, input, target, code(reduction, size_average, reduce), weight)


def _loss(
    function: type[Function], input: Tensor, target: Tensor, reduction: int, weight: Tensor | None
) -> Tensor:
    if target.size() != input.size():
        warnings.warn(
            f"Using a target size ({target.size()}) that is different to the input size ({input.size()}). "
            "This will likely lead to incorrect results due to broadcasting. "
            "Please ensure they have the same size.",
            stacklevel=3,
        )
    expanded = torch.broadcast_tensors(input, target)
    if weight is None:
        return function.call(*expanded, reduction)
    if weight.size() != input.size():
        raise ValueError("Weights and input must have the same size.")
    errors = function.call(*expanded, NONE) * weight
    if reduction == NONE:
        return errors
    return errors.sum() / weight.sum() if reduction == MEAN else errors.sum()


class MSELoss(Handwritten, nn.MSELoss):
    """`torch.nn.MSELoss` with a hand-written backward."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return mse_loss(input, target, reduction=self.reduction)


class L1Loss(Handwritten, nn.L1Loss):
    """`torch.nn.L1Loss` with a hand-written backward."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return l1_loss(input, target, reduction=self.reduction)


def _samples() -> Iterable[Sample]:
    pair = (randn(4, 3), randn(4, 3, seed=1))
    for reduction in ("mean", "sum", "none"):
        yield Sample(kwargs={"reduction": reduction}, inputs=pair, label=reduction)


SPECS = tuple(
    LossSpec(
        name=name,
        module=module,
        reference=reference,
        samples=_samples,
        saves="input and target",
        saved_bytes=lambda module, inputs, output: nbytes(*inputs),
        aliases=aliases,
        summary=summary,
    )
    for name, module, reference, aliases, summary in (
        ("mse", MSELoss, nn.MSELoss, ("MSELoss", "mse_loss"), "mean squared error"),
        ("l1", L1Loss, nn.L1Loss, ("L1Loss", "l1_loss"), "mean absolute error"),
    )
)
