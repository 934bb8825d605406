"""Optimizers as users write them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


class Careless(torch.optim.Optimizer):
    """RMSprop without the small number under the fraction: 0 / 0 where a gradient stays 0."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                mean = state.setdefault("square", parameter.grad.square())
                mean.lerp_(parameter.grad.square(), 0.1)
                parameter -= group["lr"] * parameter.grad / mean.sqrt()
