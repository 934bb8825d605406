"""The pointwise losses: each a line for its term and one for each gradient, as `rules.py` reads them.

    MSE               (x - t)²                                     ∂x 2 (x - t)             ∂t -∂x
    L1                |x - t|                                      sgn(x - t), 0 at 0       -∂x
    SmoothL1   |d|<β: d²/2β,     else |d| - β/2       d = x - t    d/β cut to [-1, 1]       -∂x
    Huber      |d|<Δ: d²/2,      else Δ (|d| - Δ/2)                d cut to [-Δ, Δ]         -∂x
    SoftMargin        ln(1 + e^{-tx})                              -t σ(-tx)
    HingeEmbedding    t = 1: x,  t = -1: max(0, Δ - x)             1, -[x ≤ Δ]
    MarginRanking     max(0, Δ - t (x₁ - x₂))                      ∂x₁ -t κ,  ∂x₂ t κ       -(x₁ - x₂) κ

κ is 1 where the margin is not kept, the term's edge included, and 0 elsewhere. HingeEmbedding adds both
of its terms for any other label, as torch does. Likelihoods are in `likelihood.py`.

Sources: Gauss 1823 (MSE); Laplace 1774 (L1); Girshick 2015 (SmoothL1); Huber 1964; Hadsell, Chopra &
LeCun 2006 (HingeEmbedding); Herbrich, Graepel & Obermayer 1999 (MarginRanking).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bpkit.core.fuse import formula
from bpkit.core.spec import randn
from bpkit.losses.reduction import reduced
from bpkit.losses.rules import FP32, cases, pair, pointwise, same_size
from bpkit.ops.op import op


def _labelled() -> tuple[Tensor, ...]:
    return randn(4, 3), randn(4, 3, seed=1).sign()


MSELoss = pointwise(
    "mse",
    reference=nn.MSELoss,
    twin=F.mse_loss,
    forward=lambda input, target, reduction: torch._C._nn.mse_loss(input, target, reduction),
    gradients={
        "input": lambda g, input, target: (input - target) * (2 * g),
        "target": lambda g, input, target: (target - input) * (2 * g),
    },
    prepare=same_size,
    samples=cases(pair),
    summary="mean squared error",
)

_difference = op(
    lambda input, target: input - target,
    name="difference",
    autocast=FP32,
    input=lambda g: g,
    target=lambda g: -g,
)

L1Loss = pointwise(
    "l1",
    reference=nn.L1Loss,
    twin=F.l1_loss,
    prepare=lambda input, target: (_difference(*same_size(input, target)),),
    of=("difference",),
    forward=lambda difference, reduction: reduced(difference.abs(), reduction),
    # Of complex numbers, too, of which a rule is given the conjugates.
    gradients={"difference": lambda g, difference: difference.conj().sgn() * g},
    samples=cases(pair),
    saves="difference",
    summary="mean absolute error",
)


def _smooth_l1(input: Tensor, target: Tensor, beta: float, reduction: int) -> Tensor:
    if beta == 0:
        return torch._C._nn.l1_loss(input, target, reduction)  # type: ignore[arg-type]
    return torch._C._nn.smooth_l1_loss(input, target, reduction, beta)  # type: ignore[arg-type]


def _smooth_l1_slope(g: Tensor, difference: Tensor, beta: float) -> Tensor:
    return difference.sgn() * g if beta == 0 else difference.clamp(-beta, beta) * (g / beta)


SmoothL1Loss = pointwise(
    "smooth_l1",
    reference=nn.SmoothL1Loss,
    twin=F.smooth_l1_loss,
    forward=_smooth_l1,
    gradients={
        "input": lambda g, input, target, beta: _smooth_l1_slope(g, input - target, beta),
        "target": lambda g, input, target, beta: _smooth_l1_slope(g, target - input, beta),
    },
    prepare=same_size,
    samples=cases(pair, {"beta": 0.3}, {"beta": 0.0}),
    summary="squared near zero, absolute beyond",
)

HuberLoss = pointwise(
    "huber",
    reference=nn.HuberLoss,
    twin=F.huber_loss,
    forward=lambda input, target, delta, reduction: torch._C._nn.huber_loss(input, target, reduction, delta),
    gradients={
        "input": lambda g, input, target, delta: (input - target).clamp(-delta, delta) * g,
        "target": lambda g, input, target, delta: (target - input).clamp(-delta, delta) * g,
    },
    prepare=same_size,
    weighted_mean=False,
    samples=cases(pair, {"delta": 0.3}),
    summary="squared near zero, linear beyond",
)


def _soft_margin_slope(power: Tensor, target: Tensor) -> Tensor:
    """-t σ(-tx), by torch's formula: NaN where the loss is infinite."""
    return -target * power / (1 + power)


SoftMarginLoss = pointwise(
    "soft_margin",
    reference=nn.SoftMarginLoss,
    twin=F.soft_margin_loss,
    forward=lambda input, target, reduction: torch._C._nn.soft_margin_loss(input, target, reduction),
    gradients={"input": lambda g, input, target: _soft_margin_slope(torch.exp(-target * input), target) * g},
    refuses="target",
    samples=cases(lambda: (randn(4, 3), randn(4, 3, seed=1).sign().long())),
    summary="logistic, of labels 1 and -1",
)


@formula
def _hinge_slope(input: Tensor, target: Tensor, margin: float) -> Tensor:
    """1 where the label is not -1, and one less where it is not 1 and the margin is not kept."""
    return (target != -1).to(torch.int8) - ((target != 1) & (margin - input >= 0)).to(torch.int8)


HingeEmbeddingLoss = pointwise(
    "hinge_embedding",
    reference=nn.HingeEmbeddingLoss,
    twin=F.hinge_embedding_loss,
    forward=lambda input, target, margin, reduction: torch.hinge_embedding_loss(
        input, target, margin, reduction
    ),
    kept=_hinge_slope,
    gradients={"input": lambda g, kept: g * kept},
    samples=cases(_labelled, {"margin": 0.3}),
    saves="the sign of each gradient, in a byte",
    summary="small distances for label 1, large ones for -1",
)


def _same_rank(input1: Tensor, input2: Tensor, target: Tensor, margin: float) -> tuple[Any, ...]:
    if input1.dim() != input2.dim() or input1.dim() != target.dim():
        raise RuntimeError(
            "margin_ranking_loss : All input tensors should have same dimension but got sizes: "
            f"input1: {input1.size()}, input2: {input2.size()}, target: {target.size()} "
        )
    return input1, input2, target, margin


MarginRankingLoss = pointwise(
    "margin_ranking",
    reference=nn.MarginRankingLoss,
    twin=F.margin_ranking_loss,
    forward=lambda input1, input2, target, margin, reduction: torch.margin_ranking_loss(
        input1, input2, target, margin, reduction
    ),
    kept=formula(lambda input1, input2, target, margin: -target * (input1 - input2) + margin >= 0),
    gradients={
        "input1": lambda g, target, kept: -target * g * kept,
        "input2": lambda g, target, kept: target * g * kept,
        "target": lambda g, input1, input2, kept: (input2 - input1) * g * kept,
    },
    prepare=_same_rank,
    samples=cases(lambda: (randn(4, 3, seed=2), *_labelled()), {"margin": 0.5}),
    saves="target, and in a byte where the margin is not kept",
    summary="which of two is larger",
)


TABLE = (
    MSELoss,
    L1Loss,
    SmoothL1Loss,
    HuberLoss,
    SoftMarginLoss,
    HingeEmbeddingLoss,
    MarginRankingLoss,
)
SPECS = tuple(each.SPEC for each in TABLE)

(
    mse_loss,
    l1_loss,
    smooth_l1_loss,
    huber_loss,
    soft_margin_loss,
    hinge_embedding_loss,
    margin_ranking_loss,
) = (each.functional for each in TABLE)
