"""Likelihoods of a sample, term by term: PoissonNLL, GaussianNLL and KLDiv, as `rules.py` reads them.

    PoissonNLL     eˣ - t x,  or x - t ln(x + ε)       ∂x eˣ - t, 1 - t/(x + ε)     ∂t -x, -ln(x + ε)
    GaussianNLL    (ln v + d²/v) / 2,  d = x - t       ∂d d/v                       ∂v (1 - d²/v) / 2v
                   with v the variance, at least ε
    KLDiv          t (ln t - x)                        ∂x -t                        ∂t ln t + 1 - x
                   or eᵗ (t - x)                       ∂x -eᵗ                       ∂t eᵗ (t - x + 1)

Poisson's full form adds Stirling's t ln t - t + ln(2πt)/2 where t > 1. As torch has it, the gradient to a
variance that was cut to ε is the one at ε.

Sources: Nix & Weigend 1994 (GaussianNLL); Cameron & Trivedi 1998, ch. 3 (PoissonNLL); Kullback & Leibler
1951 (KLDiv).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bpkit import ops
from bpkit.core.fuse import formula
from bpkit.core.precision import in_float32
from bpkit.core.spec import randn
from bpkit.losses.reduction import BATCHMEAN, SUM, reduced
from bpkit.losses.rules import cases, pair, pointwise


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
    samples=cases(
        lambda: (randn(4, 3).abs(), 3 * randn(4, 3, seed=1).abs()), {"full": True}, {"log_input": False}
    ),
    summary="log-likelihood of a count",
)


@formula
@in_float32
def _gaussian_loss(difference: Tensor, var: Tensor, full: bool, eps: float, reduction: int) -> Tensor:
    var = var.clamp(min=eps)
    terms = 0.5 * (torch.log(var) + difference**2 / var)
    return reduced(terms + 0.5 * math.log(2 * math.pi) if full else terms, reduction)


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
    samples=cases(lambda: (*pair(), 0.1 + randn(4, 3, seed=2).abs()), {"full": True}),
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
    samples=cases(
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

TABLE = (PoissonNLLLoss, GaussianNLLLoss, KLDivLoss)
SPECS = tuple(each.SPEC for each in TABLE)

poisson_nll_loss, gaussian_nll_loss, kl_div = (each.functional for each in TABLE)
