"""RMSprop: each step divided by the root of a running mean of squared gradients.

    s ← α s + (1 - α) g²             a ← α a + (1 - α) g  (centred)
    d = √s + ε   or, centred,   √(s - a²) + ε
    θ ← θ - η g / d                  or, with momentum,   v ← μ v + g / d,   θ ← θ - η v

g is the gradient, plus λ θ if the weights decay.
Sources: Hinton, "Neural networks for machine learning", lecture 6e, 2012; Graves, "Generating sequences
with recurrent neural networks", 2013 (centred).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bpkit.core.spec import OptimizerSpec
from bpkit.optim.update import State, Update, count, tensors


class RMSprop(Update, torch.optim.RMSprop):
    """`torch.optim.RMSprop`, its update written out."""

    def update(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], states: list[State]
    ) -> None:
        alpha, lr = group["alpha"], float(group["lr"])
        count(states)
        if group["weight_decay"]:
            grads = list(torch._foreach_add(grads, params, alpha=group["weight_decay"]))
        squares = tensors(states, "square_avg", params)
        torch._foreach_mul_(squares, alpha)
        torch._foreach_addcmul_(squares, grads, grads, value=1 - alpha)
        spread = squares
        if group["centered"]:
            means = tensors(states, "grad_avg", params)
            torch._foreach_lerp_(means, grads, 1 - alpha)
            spread = list(torch._foreach_addcmul(squares, means, means, value=-1))
        scale = torch._foreach_sqrt(spread)
        torch._foreach_add_(scale, group["eps"])
        if group["momentum"]:
            velocities = tensors(states, "momentum_buffer", params)
            torch._foreach_mul_(velocities, group["momentum"])
            torch._foreach_addcdiv_(velocities, grads, scale)
            torch._foreach_add_(params, velocities, alpha=-lr)
        else:
            torch._foreach_addcdiv_(params, grads, scale, value=-lr)


SPECS = (
    OptimizerSpec(
        name="rmsprop",
        optimizer=RMSprop,
        reference=torch.optim.RMSprop,
        settings=(
            {"lr": 0.01},
            {"lr": 0.01, "alpha": 0.9, "weight_decay": 0.01},
            {"lr": 0.01, "momentum": 0.9},
            {"lr": 0.01, "centered": True, "momentum": 0.5, "maximize": True},
        ),
        aliases=("RMSprop",),
        summary="steps scaled by running squared gradients",
    ),
)
