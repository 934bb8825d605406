"""Adam: running means of the gradient and of its square, both corrected for starting at zero.

    m ← β₁ m + (1 - β₁) g            v ← β₂ v + (1 - β₂) g²
    m̂ = m / (1 - β₁ᵏ)                v̂ = v / (1 - β₂ᵏ)                   k: steps so far
    θ ← θ - η m̂ / (√v̂ + ε)

g is the gradient, plus λ θ if the weights decay (`AdamW` takes the decay out of g). With `amsgrad`, v̂
is the largest there has been.
Sources: Kingma & Ba, "Adam", 2015, algorithm 1; Reddi, Kale & Kumar, "On the convergence of Adam and
beyond", 2018 (amsgrad).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bpkit.core.spec import OptimizerSpec
from bpkit.optim.update import State, Update, count, tensors


class Adam(Update, torch.optim.Adam):
    """`torch.optim.Adam`, its update written out."""

    def update(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], states: list[State]
    ) -> None:
        lr, decay = float(group["lr"]), group["weight_decay"]
        beta1, beta2 = (float(beta) for beta in group["betas"])
        if decay and group["decoupled_weight_decay"]:
            torch._foreach_mul_(params, 1 - lr * decay)
        elif decay:
            grads = list(torch._foreach_add(grads, params, alpha=decay))
        steps = count(states)
        means = tensors(states, "exp_avg", params)
        squares = tensors(states, "exp_avg_sq", params)
        torch._foreach_lerp_(means, grads, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, value=1 - beta2)
        if group["amsgrad"]:
            highest = tensors(states, "max_exp_avg_sq", params)
            torch._foreach_maximum_(highest, squares)
            squares = highest
        scale = torch._foreach_sqrt(squares)
        torch._foreach_div_(scale, [math.sqrt(1 - beta2**step) for step in steps])
        torch._foreach_add_(scale, group["eps"])
        torch._foreach_addcdiv_(params, means, scale, [-lr / (1 - beta1**step) for step in steps])


SPECS = (
    OptimizerSpec(
        name="adam",
        optimizer=Adam,
        reference=torch.optim.Adam,
        settings=(
            {"lr": 0.01},
            {"lr": 0.01, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.1},
            {"lr": 0.01, "amsgrad": True, "maximize": True},
        ),
        aliases=("Adam",),
        summary="running means of gradient and square",
    ),
)
