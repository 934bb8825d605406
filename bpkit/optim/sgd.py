"""SGD: stochastic gradient descent, with momentum.

With g the gradient of θ (plus λ θ, if the weights decay) and v the velocity, v = g on the first step:

    v ← μ v + (1 - τ) g              μ: momentum, τ: dampening
    θ ← θ - η v                      η: learning rate
    θ ← θ - η (g + μ v)              with Nesterov's momentum

Sources: Robbins & Monro, 1951; Polyak, 1964; Nesterov, 1983; Sutskever, Martens, Dahl & Hinton, "On the
importance of initialization and momentum in deep learning", 2013.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bpkit.core.spec import OptimizerSpec
from bpkit.optim.update import State, Update, like_parameter, real


class SGD(Update, torch.optim.SGD):
    """`torch.optim.SGD`, its update written out."""

    sparse = True

    def update(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], states: list[State]
    ) -> None:
        momentum = group["momentum"]
        if group["weight_decay"]:
            grads = list(torch._foreach_add(grads, params, alpha=group["weight_decay"]))
        if momentum:
            started = [i for i, state in enumerate(states) if state.get("momentum_buffer") is not None]
            if started:
                moving = [real(states[i]["momentum_buffer"]) for i in started]
                torch._foreach_mul_(moving, momentum)
                torch._foreach_add_(moving, [grads[i] for i in started], alpha=1 - group["dampening"])
            for param, grad, state in zip(params, grads, states, strict=True):
                if state.get("momentum_buffer") is None:
                    state["momentum_buffer"] = like_parameter(grad.clone(), param)
            velocities = [real(state["momentum_buffer"]) for state in states]
            if group["nesterov"]:
                grads = list(torch._foreach_add(grads, velocities, alpha=momentum))
            else:
                grads = velocities
        torch._foreach_add_(params, grads, alpha=-float(group["lr"]))


SPECS = (
    OptimizerSpec(
        name="sgd",
        optimizer=SGD,
        reference=torch.optim.SGD,
        settings=(
            {"lr": 0.1},
            {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01},
            {"lr": 0.05, "momentum": 0.9, "dampening": 0.3},
            {"lr": 0.05, "momentum": 0.9, "nesterov": True},
            {"lr": 0.01, "maximize": True},
        ),
        aliases=("SGD",),
        summary="stochastic gradient descent, momentum",
    ),
)
