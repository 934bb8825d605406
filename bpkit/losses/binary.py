"""BCELoss and BCEWithLogitsLoss: yes or no, from a probability or from its logit.

    l[k] = -w[k] (t[k] ln x[k] + (1 - t[k]) ln(1 - x[k]))                    k: any position
    ∂l/∂x[k] = w[k] (x[k] - t[k]) / (x[k] (1 - x[k]))
    ∂l/∂t[k] = w[k] (ln(1 - x[k]) - ln x[k])

with the logarithms cut at -100 in l and the denominator at 1e-12 in its derivative, as torch does. From
a logit z, x = σ(z), and with p[k] weighting the positive term, c[k] = 1 + (p[k] - 1) t[k]:

    l[k] = w[k] ((1 - t[k]) z[k] + c[k] ln(1 + e^{-z[k]}))
    ∂l/∂z[k] = w[k] (1 - t[k] - c[k] σ(-z[k]))
    ∂l/∂t[k] = w[k] ((p[k] - 1) ln(1 + e^{-z[k]}) - z[k])

which divides by nothing. The reduction brings δ/m, m the number of elements for a mean, else 1.

Saved: input and target (and the weights, which are given).
Source: Good, "Rational decisions", 1952; Bishop, "Pattern recognition and machine learning", eq. (4.90).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bpkit.core.function import Function
from bpkit.core.fuse import formula
from bpkit.core.module import Handwritten
from bpkit.core.precision import in_float32
from bpkit.core.refusal import refuse
from bpkit.core.spec import LossSpec, Sample, nbytes, randn
from bpkit.losses.reduction import code, refuse_gradient, share

SMALLEST = 9.999999960041972e-13  # torch's 1e-12 is a C float, for double precision as well


@formula
@in_float32
def _probability_gradient(
    grad_output: Tensor, input: Tensor, target: Tensor, weight: Tensor | None, reduction: int
) -> Tensor:
    slope = (input - target) / ((1 - input) * input).clamp(min=SMALLEST)
    gradient = slope * share(grad_output, input, reduction)
    return gradient if weight is None else gradient * weight


@formula
@in_float32
def _logit_gradient(
    grad_output: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    positive: Tensor | None,
    reduction: int,
) -> Tensor:
    if positive is None:
        gradient = (torch.sigmoid(input) - target) * share(grad_output, input, reduction)
    else:
        cost = 1 + (positive - 1) * target
        gradient = (1 - target - cost * torch.sigmoid(-input)) * share(grad_output, input, reduction)
    return gradient if weight is None else gradient * weight


class BCEFunction(Function):
    """`(x [*], t [*], w [*] | None, reduction) -> [] or [*]`."""

    autocast = {"cpu": "fp32"}

    @staticmethod
    def forward(input: Tensor, target: Tensor, weight: Tensor | None, reduction: int) -> Tensor:
        return torch._C._nn.binary_cross_entropy(input, target, weight, reduction)  # type: ignore[arg-type]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, target, weight, ctx.reduction = inputs
        ctx.save_for_backward(input, target, weight)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        input, target, weight = ctx.saved_tensors
        grad_input = grad_target = None
        if ctx.needs_input_grad[0]:
            grad_input = _probability_gradient(grad_output, input, target, weight, ctx.reduction)
        if ctx.needs_input_grad[1]:
            odds = torch.log1p(-input) - torch.log(input)
            grad_target = odds * share(grad_output, input, ctx.reduction)
            grad_target = grad_target if weight is None else grad_target * weight
        return grad_input, grad_target, None, None


class BCEWithLogitsFunction(Function):
    """`(z [*], t [*], w [*] | None, p [*] | None, reduction) -> [] or [*]`."""

    autocast = {"cpu": "fp32", "cuda": "fp32"}

    @staticmethod
    def forward(
        input: Tensor, target: Tensor, weight: Tensor | None, positive: Tensor | None, reduction: int
    ) -> Tensor:
        return torch.binary_cross_entropy_with_logits(input, target, weight, positive, reduction)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, target, weight, positive, ctx.reduction = inputs
        ctx.save_for_backward(input, target, weight, positive)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        input, target, weight, positive = ctx.saved_tensors
        grad_input = grad_target = None
        if ctx.needs_input_grad[0]:
            grad_input = _logit_gradient(grad_output, input, target, weight, positive, ctx.reduction)
        if ctx.needs_input_grad[1]:
            slope = -input if positive is None else (positive - 1) * F.softplus(-input) - input
            grad_target = slope * share(grad_output, input, ctx.reduction)
            grad_target = grad_target if weight is None else grad_target * weight
        return grad_input, grad_target, None, None, None


def binary_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """`torch.nn.functional.binary_cross_entropy` with a hand-written backward.

    Args:
        input: `[*]`, probabilities.
        target: `[*]`, probabilities.
        weight: a factor for each element, broadcast.
        size_average: deprecated, see `reduction`.
        reduce: deprecated, see `reduction`.
        reduction: `"none"`, `"mean"` or `"sum"`.

    Returns:
        A scalar, or `[*]` without a reduction.

    Raises:
        ValueError: another shape of target, an unknown reduction.
        RuntimeError: an input outside [0, 1]; CUDA autocast, where it is unsafe in half precision.
    """
    reduced = code(reduction, size_average, reduce)
    if target.size() != input.size():
        raise ValueError(
            f"Using a target size ({target.size()}) that is different to the input size ({input.size()}) "
            "is deprecated. Please ensure they have the same size."
        )
    if input.is_cuda and torch.is_autocast_enabled("cuda"):
        refuse(F.binary_cross_entropy, input, target, weight, reduction=reduction)
    refuse_gradient("binary_cross_entropy", "weight", weight)
    if weight is not None:
        weight = weight.expand(torch.broadcast_shapes(target.size(), weight.size()))
    return BCEFunction.call(input, target, weight, reduced)


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """`torch.nn.functional.binary_cross_entropy_with_logits` with a hand-written backward.

    Args:
        input: `[*]`, logits.
        target: `[*]`, probabilities.
        weight: a factor for each element, broadcast.
        size_average: deprecated, see `reduction`.
        reduce: deprecated, see `reduction`.
        reduction: `"none"`, `"mean"` or `"sum"`.
        pos_weight: a factor for the positive term, broadcast.

    Returns:
        A scalar, or `[*]` without a reduction.

    Raises:
        ValueError: another shape of target, an unknown reduction.
    """
    reduced = code(reduction, size_average, reduce)
    if target.size() != input.size():
        raise ValueError(f"Target size ({target.size()}) must be the same as input size ({input.size()})")
    refuse_gradient("binary_cross_entropy_with_logits", "weight", weight)
    refuse_gradient("binary_cross_entropy_with_logits", "pos_weight", pos_weight)
    return BCEWithLogitsFunction.call(input, target, weight, pos_weight, reduced)


class BCELoss(Handwritten, nn.BCELoss):
    """`torch.nn.BCELoss` with a hand-written backward."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return binary_cross_entropy(input, target, weight=self.weight, reduction=self.reduction)


class BCEWithLogitsLoss(Handwritten, nn.BCEWithLogitsLoss):
    """`torch.nn.BCEWithLogitsLoss` with a hand-written backward."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return binary_cross_entropy_with_logits(
            input, target, self.weight, pos_weight=self.pos_weight, reduction=self.reduction
        )


def _probabilities(*shape: int, seed: int) -> Tensor:
    return torch.sigmoid(randn(*shape, seed=seed))


def _samples() -> Iterable[Sample]:
    pair = (_probabilities(4, 3, seed=0), _probabilities(4, 3, seed=1))
    yield Sample(inputs=pair)
    weighted = {"weight": _probabilities(3, seed=2), "reduction": "none"}
    yield Sample(kwargs=weighted, inputs=pair, label="weight, none")
    yield Sample(kwargs={"reduction": "sum"}, inputs=pair, label="sum")


def _logit_samples() -> Iterable[Sample]:
    pair = (3 * randn(4, 3), _probabilities(4, 3, seed=1))
    yield Sample(inputs=pair)
    positive = {"pos_weight": 2 * _probabilities(3, seed=2), "reduction": "sum"}
    yield Sample(kwargs=positive, inputs=pair, label="pos_weight, sum")
    weighted = {"weight": _probabilities(4, 1, seed=2), "reduction": "none"}
    yield Sample(kwargs=weighted, inputs=pair, label="weight, none")


SPECS = tuple(
    LossSpec(
        name=name,
        module=module,
        reference=reference,
        samples=samples,
        saves="input and target",
        saved_bytes=lambda module, inputs, output: nbytes(*inputs, *module.buffers()),
        aliases=aliases,
        summary=summary,
    )
    for name, module, reference, samples, aliases, summary in (
        (
            "bce",
            BCELoss,
            nn.BCELoss,
            _samples,
            ("BCELoss", "binary_cross_entropy"),
            "yes or no, from a probability",
        ),
        (
            "bce_with_logits",
            BCEWithLogitsLoss,
            nn.BCEWithLogitsLoss,
            _logit_samples,
            ("BCEWithLogitsLoss", "binary_cross_entropy_with_logits"),
            "yes or no, from a logit",
        ),
    )
)
