"""The example of an optimizer that `bpkit new-plugin` writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim.optimizer import ParamsT

from bpkit import OptimizerSpec, hookimpl


class HeavyBall(torch.optim.Optimizer):
    """Gradient descent with momentum: v ← μ v + g, θ ← θ - η v.

    Args:
        params: what it moves.
        lr: η, the learning rate.
        momentum: μ, in [0, 1).

    Source: Polyak, "Some methods of speeding up the convergence of iteration methods", 1964.
    """

    def __init__(self, params: ParamsT, lr: float = 0.01, momentum: float = 0.9) -> None:
        if lr < 0 or not 0 <= momentum < 1:
            raise ValueError(f"lr must be at least 0 and momentum in [0, 1), not {lr} and {momentum}")
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move every parameter that has a gradient; the closure's loss, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "velocity" not in state:
                    state["velocity"] = torch.zeros_like(parameter)
                state["velocity"].mul_(group["momentum"]).add_(parameter.grad)
                parameter.sub_(group["lr"] * state["velocity"])
        return loss


@hookimpl
def bpkit_optimizers() -> Iterable[OptimizerSpec]:
    """The optimizers: each proven to follow its twin step for step, with each of its settings."""
    return [
        OptimizerSpec(
            name="mine.heavy_ball",
            optimizer=HeavyBall,
            reference=torch.optim.SGD,
            settings=({"lr": 0.1, "momentum": 0.9}, {"lr": 0.05, "momentum": 0.5}),
            summary="gradient descent with momentum",
        )
    ]
