"""MultiLabelSoftMarginLoss: each of C classes is there or not, by its own logistic regression.

    l[n] = -1/C Σ_c w[c] (t[n,c] ln σ(x[n,c]) + (1 - t[n,c]) ln σ(-x[n,c]))            n: row, c: class

    ∂l/∂x = w (σ(x) - t) / C        ∂l/∂t = -w x / C        ∂l/∂w the term itself

Saved: input and target (and the weights, which are given).
Source: Cox, "The regression analysis of binary sequences", 1958, for each class.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bpkit.core.function import Function
from bpkit.core.fuse import formula
from bpkit.core.module import Handwritten
from bpkit.core.precision import in_float32, widen
from bpkit.core.spec import LossSpec, Sample, nbytes, randn
from bpkit.losses.reduction import MEAN, NONE, code, reduced


@formula
@in_float32
def _soft_terms(input: Tensor, target: Tensor) -> Tensor:
    """-(t ln σ(x) + (1 - t) ln σ(-x)), without an exponential that overflows."""
    return input.relu() - target * input + torch.log1p(torch.exp(-input.abs()))


class MultiLabelSoftMarginFunction(Function):
    """`(x [*, c], t [*, c], w [c] | None, reduction) -> [] or [*]`."""

    @staticmethod
    def forward(input: Tensor, target: Tensor, weight: Tensor | None, reduction: int) -> Tensor:
        terms = _soft_terms(input, target)
        rows = (terms if weight is None else terms * weight).sum(input.dim() - 1) / input.size(
            input.dim() - 1
        )
        return reduced(rows, reduction)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, target, weight, ctx.reduction = inputs
        ctx.save_for_backward(input, target, weight)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        input, target, weight = ctx.saved_tensors
        shape = torch.broadcast_shapes(input.shape, target.shape, () if weight is None else weight.shape)
        share = widen(grad_output) / input.shape[-1]
        if ctx.reduction == MEAN:
            share = share / max(1, shape[:-1].numel())
        elif ctx.reduction == NONE:
            share = share.unsqueeze(-1)
        weighted = share if weight is None else share * weight
        wanted = ctx.needs_input_grad
        return (
            _like(_soft_slope(input, target, weighted), input) if wanted[0] else None,
            _like(-widen(input) * weighted, target) if wanted[1] else None,
            _like((_soft_terms(input, target) * share).expand(shape), weight) if wanted[2] else None,
            None,
        )


@formula
def _soft_slope(input: Tensor, target: Tensor, share: Tensor) -> Tensor:
    return (torch.sigmoid(widen(input)) - target) * share


def _like(gradient: Tensor, tensor: Tensor) -> Tensor:
    return gradient.sum_to_size(tensor.shape).to(tensor.dtype)


def multilabel_soft_margin_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """`torch.nn.functional.multilabel_soft_margin_loss` with a hand-written backward."""
    if size_average is None and reduce is None and reduction not in ("none", "mean", "sum"):
        raise ValueError(reduction + " is not valid")
    return MultiLabelSoftMarginFunction.call(input, target, weight, code(reduction, size_average, reduce))


class MultiLabelSoftMarginLoss(Handwritten, nn.MultiLabelSoftMarginLoss):
    """`torch.nn.MultiLabelSoftMarginLoss` with a hand-written backward."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return multilabel_soft_margin_loss(input, target, self.weight, reduction=self.reduction)


def _samples() -> Iterable[Sample]:
    weight = torch.tensor([0.5, 2.0, 1.5], dtype=torch.float64)
    pair = (3 * randn(4, 3), torch.sigmoid(randn(4, 3, seed=1)))
    yield Sample(inputs=pair)
    yield Sample(kwargs={"weight": weight, "reduction": "none"}, inputs=pair, label="weight, none")
    yield Sample(kwargs={"reduction": "sum"}, inputs=pair, label="sum")


SPECS = (
    LossSpec(
        name="multilabel_soft_margin",
        module=MultiLabelSoftMarginLoss,
        reference=nn.MultiLabelSoftMarginLoss,
        samples=_samples,
        saves="input and target",
        saved_bytes=lambda module, inputs, output: nbytes(*inputs, *module.buffers()),
        aliases=("MultiLabelSoftMarginLoss", "multilabel_soft_margin_loss"),
        summary="each class, yes or no",
    ),
)
