"""The pointwise losses: each a line for its term and one for each gradient, as `rules.py` reads them.

    MSE               (x - t)²                                     ∂x 2 (x - t)             ∂t -∂x
    L1                |x - t|                                      sgn(x - t), 0 at 0       -∂x
    SmoothL1   |d|<β: d²/2β,     else |d| - β/2       d = x - t    d/β cut to [-1, 1]       -∂x
    Huber      |d|<Δ: d²/2,      else Δ (|d| - Δ/2)                d cut to [-Δ, Δ]         -∂x
    SoftMargin        ln(1 + e^{-tx})                              -t σ(-tx)
    HingeEmbedding    t = 1: x,  t = -1: max(0, Δ - x)             1, -[x ≤ Δ]
    MarginRanking     max(0, Δ - t (x₁ - x₂))                      ∂x₁ -t κ,  ∂x₂ t κ       -(x₁ - x₂) κ
    PoissonNLL        eˣ - t x,  or x - t ln(x + ε)                eˣ - t, 1 - t/(x + ε)    -x, -ln(x + ε)
    GaussianNLL       (ln v + (x - t)²/v) / 2                      (x - t)/v                -∂x
                      with v the variance, at least ε              ∂v (1 - (x - t)²/v) / 2v
    KLDiv             t (ln t - x)                                 -t                       ln t + 1 - x
                      or eᵗ (t - x)                                -eᵗ                      eᵗ (t - x + 1)

κ is 1 where the margin is not kept, the term's edge included, and 0 elsewhere. Poisson's full form adds
Stirling's t ln t - t + ln(2πt)/2 where t > 1. As torch has it, the gradient to a variance that was cut
to ε is the one at ε. HingeEmbedding adds both of its terms for any other label, as torch does.

Sources: Gauss 1823 (MSE); Laplace 1774 (L1); Girshick 2015 (SmoothL1); Huber 1964; Hadsell, Chopra &
LeCun 2006 (HingeEmbedding); Herbrich, Graepel & Obermayer 1999 (MarginRanking); Nix & Weigend 1994
(GaussianNLL); Kullback & Leibler 1951.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bpkit import ops
from bpkit.core.fuse import formula
from bpkit.core.precision import in_float32
from bpkit.core.spec import Sample, Samples, randn
from bpkit.losses.reduction import BATCHMEAN, MEAN, NONE, SUM
from bpkit.losses.rules import FP32, pointwise, same_size
from bpkit.ops.op import op


def _reduced(terms: Tensor, reduction: int) -> Tensor:
    return terms if reduction == NONE else terms.mean() if reduction == MEAN else terms.sum()


def _cases(inputs: Callable[[], tuple[Tensor, ...]], *settings: Mapping[str, Any]) -> Samples:
    """The inputs in each reduction, and with each of `settings`."""

    def samples() -> Iterable[Sample]:
        for kwargs in ({}, {"reduction": "sum"}, {"reduction": "none"}, *settings):
            label = ", ".join(f"{key}={value}" for key, value in kwargs.items())
            yield Sample(kwargs=kwargs, inputs=inputs(), label=label)

    return samples


def _pair() -> tuple[Tensor, ...]:
    return randn(4, 3), randn(4, 3, seed=1)


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
    samples=_cases(_pair),
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
    forward=lambda difference, reduction: _reduced(difference.abs(), reduction),
    gradients={"difference": lambda g, difference: difference.sgn() * g},  # of complex numbers, too
    samples=_cases(_pair),
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
    samples=_cases(_pair, {"beta": 0.3}, {"beta": 0.0}),
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
    samples=_cases(_pair, {"delta": 0.3}),
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
    samples=_cases(lambda: (randn(4, 3), randn(4, 3, seed=1).sign().long())),
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
    samples=_cases(_labelled, {"margin": 0.3}),
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
    samples=_cases(lambda: (randn(4, 3, seed=2), *_labelled()), {"margin": 0.5}),
    saves="target, and in a byte where the margin is not kept",
    summary="which of two is larger",
)


def _poisson_target(
    g: Tensor, input: Tensor, target: Tensor, log_input: bool, full: bool, eps: float
) -> Tensor:
    slope = -input if log_input else -torch.log(input + eps)
    if not full:
        return slope * g
    above = torch.where(target <= 1, 1, target)
    return (slope + torch.where(target <= 1, 0 * target, above.log() + 0.5 / above)) * g


PoissonNLLLoss = pointwise(
    "poisson_nll",
    reference=nn.PoissonNLLLoss,
    twin=F.poisson_nll_loss,
    forward=lambda input, target, log_input, full, eps, reduction: torch.poisson_nll_loss(
        input, target, log_input, full, eps, reduction
    ),
    gradients={
        "input": lambda g, input, target, log_input, eps: (
            (input.exp() - target if log_input else 1 - target / (input + eps)) * g
        ),
        "target": _poisson_target,
    },
    samples=_cases(
        lambda: (randn(4, 3).abs(), 3 * randn(4, 3, seed=1).abs()), {"full": True}, {"log_input": False}
    ),
    summary="log-likelihood of a count",
)


@formula
@in_float32
def _gaussian_loss(difference: Tensor, var: Tensor, full: bool, eps: float, reduction: int) -> Tensor:
    var = var.clamp(min=eps)
    terms = 0.5 * (torch.log(var) + difference**2 / var)
    return _reduced(terms + 0.5 * math.log(2 * math.pi) if full else terms, reduction)


def _gaussian_var(g: Tensor, difference: Tensor, var: Tensor, eps: float) -> Tensor:
    var = _cut(var, eps)
    return (1 - difference**2 / var) * (0.5 * g / var)


def _cut(var: Tensor, eps: float) -> Tensor:
    """At least ε; its gradient passes, as torch has it, also where it was cut."""
    return torch.where(var < eps, var - var.detach() + eps, var)


def _checked_variance(input: Tensor, target: Tensor, var: Any, full: bool, eps: float) -> tuple[Any, ...]:
    if isinstance(var, float):
        if var < 0:
            raise ValueError("var has negative entry/entries")
        var = torch.full_like(input, var)
    elif torch.any(var < 0):
        raise ValueError("var has negative entry/entries")
    if var.size() != input.size():
        if input.size()[:-1] == var.size():  # one variance a row
            var = var.unsqueeze(-1)
        elif (
            input.ndim != var.ndim
            or sum(y for x, y in zip(input.size(), var.size(), strict=True) if x != y) != 1
        ):
            raise ValueError("var is of incorrect size")
    return ops.sub(input, target), var, full, eps


GaussianNLLLoss = pointwise(
    "gaussian_nll",
    reference=nn.GaussianNLLLoss,
    twin=F.gaussian_nll_loss,
    prepare=_checked_variance,
    of=("difference", "var"),
    forward=lambda difference, var, full, eps, reduction: _gaussian_loss(
        difference, var, full, eps, reduction
    ),
    gradients={
        "difference": lambda g, difference, var, eps: difference / _cut(var, eps) * g,
        "var": _gaussian_var,
    },
    autocast={"cuda": "fp32"},
    samples=_cases(lambda: (*_pair(), 0.1 + randn(4, 3, seed=2).abs()), {"full": True}),
    saves="difference and variance",
    summary="log-likelihood of a normal sample, its variance given",
)


def _divergence(input: Tensor, target: Tensor, log_target: bool, reduction: int) -> Tensor:
    if reduction != BATCHMEAN:
        return torch.kl_div(input, target, reduction, log_target=log_target)
    total = torch.kl_div(input, target, SUM, log_target=log_target)
    return total / input.size(0) if input.dim() else total


KLDivLoss = pointwise(
    "kl_div",
    reference=nn.KLDivLoss,
    twin=F.kl_div,
    forward=_divergence,
    gradients={
        "input": lambda g, target, log_target: (target.exp() if log_target else target) * -g,
        "target": lambda g, input, target, log_target: (
            (target.exp() * (target - input + 1) if log_target else target.log() + 1 - input) * g
        ),
    },
    samples=_cases(
        lambda: (randn(4, 3).log_softmax(1), randn(4, 3, seed=1).softmax(1)),
        {"reduction": "batchmean"},
        {"log_target": True},
    ),
    warns={
        "mean": "reduction: 'mean' divides the total loss by both the batch size and the support size."
        "'batchmean' divides only by the batch size, and aligns with the KL div math definition."
        "'mean' will be changed to behave the same as 'batchmean' in the next major release."
    },
    saves="target",
    summary="divergence of two distributions",
)

TABLE = (
    MSELoss,
    L1Loss,
    SmoothL1Loss,
    HuberLoss,
    SoftMarginLoss,
    HingeEmbeddingLoss,
    MarginRankingLoss,
    PoissonNLLLoss,
    GaussianNLLLoss,
    KLDivLoss,
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
    poisson_nll_loss,
    gaussian_nll_loss,
    kl_div,
) = (each.functional for each in TABLE)
