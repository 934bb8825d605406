"""Margins between classes: MultiMargin and MultiLabelMargin.

With C classes, n: row, c: class, t[n] the class of a row or t[n,j] its classes, up to the first -1:

    MultiMargin        l[n] = w[t] / C Σ_{c≠t} max(0, z[n,c])ᵖ,         z[n,c] = Δ - x[n,t] + x[n,c]
                       ∂l/∂x[n,c] = w[t] / C p max(0, z)ᵖ⁻¹ [z > 0],    ∂l/∂x[n,t] = - their sum
    MultiLabelMargin   l[n] = 1/C Σ_j Σ_{c∉t} max(0, 1 - x[n,t_j] + x[n,c])
                       ∂l/∂x[n,c]   =  #{j: x[n,t_j] - 1 < x[n,c]} / C
                       ∂l/∂x[n,t_j] = -#{c∉t: x[n,c] > x[n,t_j] - 1} / C

The counts of the second come from two sorted rows: C ln C steps, where all pairs are C² of them.

Saved: input and target (and the weights, which are given).
Sources: Weston & Watkins 1999; Crammer & Singer 2001.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bpkit.core.function import Function
from bpkit.core.module import Handwritten
from bpkit.core.precision import widen
from bpkit.core.spec import LossSpec, Sample, nbytes, randn
from bpkit.core.transforms import unseen
from bpkit.losses.reduction import MEAN, code, reduced, refuse_gradient

# Up to as many labels a row are compared one by one: four at 1024 x 1024 take 40 ms, and 140 by sorting;
# 32 take 147, and 159.
FEW = 32


def _row_share(grad_output: Tensor, x: Tensor, reduction: int) -> Tensor:
    """δ / (m C), of each row.   [n, 1] or [1, 1]"""
    share = widen(grad_output).reshape(-1, 1) / x.shape[1]
    return share / max(1, len(x)) if reduction == MEAN else share


class MultiMarginFunction(Function):
    """`(x [n, c], t [n], p, Δ, w [c] | None, reduction) -> [] or [n]`; without n for a single row."""

    autocast = {"cpu": "fp32", "cuda": "fp32"}

    @staticmethod
    def forward(
        input: Tensor, target: Tensor, p: int, margin: float, weight: Tensor | None, reduction: int
    ) -> Tensor:
        return torch._C._nn.multi_margin_loss(input, target, p, margin, weight, reduction)  # type: ignore[arg-type]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, target, ctx.p, ctx.margin, weight, ctx.reduction = inputs
        ctx.save_for_backward(input, target, weight)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        input, target, weight = ctx.saved_tensors
        x = widen(input if input.dim() > 1 else input.reshape(1, -1))
        index = target.reshape(-1, 1)
        share = _row_share(grad_output, x, ctx.reduction)
        if weight is not None:
            share = share * weight[index]
        slope = ctx.margin - x.gather(1, index) + x
        slope = (slope > 0).to(x.dtype) if ctx.p == 1 else torch.where(slope > 0, 2 * slope, 0)
        slope = (slope * share).scatter(1, index, 0)
        gradient = slope.scatter_add(1, index, -slope.sum(1, keepdim=True))
        return gradient.reshape(input.shape).to(input.dtype), None, None, None, None, None


class MultiLabelMarginFunction(Function):
    """`(x [n, c], t [n, c], reduction) -> [] or [n]`; without n for a single row."""

    autocast = {"cpu": "fp32", "cuda": "fp32"}

    @staticmethod
    def forward(input: Tensor, target: Tensor, reduction: int) -> Tensor:
        if not torch.compiler.is_compiling():
            return torch._C._nn.multilabel_margin_loss(input, target, reduction)  # type: ignore[arg-type]
        # torch 2.13 compiles its own loss to one that counts labels behind the first -1.
        x, t = (each if each.dim() > 1 else each.reshape(1, -1) for each in (input, target))
        rows = _sum_of_pairs(x, t) / x.shape[1]
        return reduced(rows if input.dim() > 1 else rows.squeeze(0), reduction)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, target, ctx.reduction = inputs
        ctx.save_for_backward(input, target)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        input, target = ctx.saved_tensors
        x, t = (each if each.dim() > 1 else each.reshape(1, -1) for each in (input, target))
        share = _row_share(grad_output, x, ctx.reduction)
        gradient = _pairs_within_margin(widen(x.detach()), t).to(share.dtype) * share
        return gradient.reshape(input.shape).to(input.dtype), None, None


def _labels(x: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """1 up to the first -1 and the classes there, as far as any row has some; how often each class is one.

    `[n, j]`, `[n, j]`, `[n, c]`.
    """
    labels = (target >= 0).cumprod(1, dtype=torch.int8)
    if not unseen():
        most = int(labels.sum(1).max()) if len(labels) else 0
        labels, target = labels[:, :most], target[:, :most]
    index = torch.where(labels > 0, target, 0)
    return labels, index, torch.zeros_like(x).scatter_add(1, index, labels.to(x.dtype))


def _sum_of_pairs(x: Tensor, target: Tensor) -> Tensor:
    """Σ_{c∉t} Σ_{j: border[j] < x[c]} (x[c] - border[j]), the border of a label being x[t_j] - 1.   [n]"""
    labels, index, own = _labels(x, target)
    borders = torch.where(labels == 0, torch.inf, x.gather(1, index) - 1).sort(1).values
    below = torch.searchsorted(borders, x.contiguous())
    sums = torch.cat((torch.zeros_like(x[:, :1]), borders.cumsum(1)), 1).gather(1, below)
    return torch.where(own > 0, 0, below * x - sums).sum(1)


def _pairs_within_margin(x: Tensor, target: Tensor) -> Tensor:
    """For each class: the pairs within the margin in which it is the other one, less those as a label."""
    labels, index, own = _labels(x, target)
    border = torch.where(labels == 0, torch.inf, x.gather(1, index) - 1)
    # Neither a label nor what is missing is above any border, nor is anything above a missing one.
    others = torch.where((own > 0) | x.isnan(), -torch.inf, x)
    if labels.shape[1] <= FEW and not unseen():
        counts, as_label = torch.zeros_like(x), torch.zeros_like(border)
        for j in range(labels.shape[1]):
            pairs = (others > border[:, j : j + 1]).to(x.dtype)
            counts += pairs
            as_label[:, j] = pairs.sum(1)
    else:
        border = border.nan_to_num(torch.inf, torch.inf, -torch.inf)
        counts = torch.searchsorted(border.sort(1).values, others).to(x.dtype)
        as_label = x.shape[1] - torch.searchsorted(others.sort(1).values, border, right=True).to(x.dtype)
    return counts.scatter_add(1, index, -as_label)


def multi_margin_loss(
    input: Tensor,
    target: Tensor,
    p: int = 1,
    margin: float = 1.0,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """`torch.nn.functional.multi_margin_loss` with a hand-written backward, which torch has but once.

    Args:
        input: scores, `[c]` or `[n, c]`.
        target: class indices, `[]` or `[n]`.
        p: 1 or 2, the power of each violation.
        margin: Δ.
        weight: `[c]`, a factor for each class.
        size_average: deprecated, see `reduction`.
        reduce: deprecated, see `reduction`.
        reduction: `"none"`, `"mean"` or `"sum"`.
    """
    reduced = code(reduction, size_average, reduce)
    if p not in (1, 2):
        raise ValueError("only p == 1 and p == 2 supported")
    if weight is not None and weight.dim() != 1:
        raise ValueError("weight must be one-dimensional")
    refuse_gradient("multi_margin_loss", "weight", weight)
    return MultiMarginFunction.call(input, target, p, margin, weight, reduced)


def multilabel_margin_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """`torch.nn.functional.multilabel_margin_loss` by hand; `target` ends at its first -1."""
    return MultiLabelMarginFunction.call(input, target, code(reduction, size_average, reduce))


class MultiMarginLoss(Handwritten, nn.MultiMarginLoss):
    """`torch.nn.MultiMarginLoss` with a hand-written backward."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return multi_margin_loss(input, target, self.p, self.margin, self.weight, None, None, self.reduction)


class MultiLabelMarginLoss(Handwritten, nn.MultiLabelMarginLoss):
    """`torch.nn.MultiLabelMarginLoss` with a hand-written backward."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return multilabel_margin_loss(input, target, reduction=self.reduction)


def _classes() -> Iterable[Sample]:
    pair = (randn(4, 3), torch.tensor([2, 0, 1, 2]))
    weight = torch.tensor([0.5, 2.0, 1.5], dtype=torch.float64)
    yield Sample(inputs=pair)
    yield Sample(kwargs={"p": 2, "weight": weight, "reduction": "none"}, inputs=pair, label="squared, weight")
    yield Sample(kwargs={"margin": 0.3, "reduction": "sum"}, inputs=pair, label="sum")


def _label_lists() -> Iterable[Sample]:
    pair = (randn(3, 4), torch.tensor([[2, 0, -1, 1], [-1, 0, 1, 2], [3, 1, 2, 0]]))
    for reduction in ("mean", "sum", "none"):
        yield Sample(kwargs={"reduction": reduction}, inputs=pair, label=reduction)


SPECS = tuple(
    LossSpec(
        name=functional.removesuffix("_loss"),
        module=module,
        reference=reference,
        samples=samples,
        saves="input and target",
        saved_bytes=lambda module, inputs, output: nbytes(*inputs, *module.buffers()),
        aliases=(reference.__name__, functional),
        summary=summary,
    )
    for functional, module, reference, samples, summary in (
        ("multi_margin_loss", MultiMarginLoss, nn.MultiMarginLoss, _classes, "one class above all others"),
        (
            "multilabel_margin_loss",
            MultiLabelMarginLoss,
            nn.MultiLabelMarginLoss,
            _label_lists,
            "some classes above all others",
        ),
    )
)
