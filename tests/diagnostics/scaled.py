"""A training in float16 under a loss scaler."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn import functional as F
from torch.optim import Optimizer


def train(
    model: nn.Module,
    optimizer: Optimizer,
    scaler: GradScaler,
    steps: int,
    *,
    parts: int = 1,
    at: Callable[[int], None] = lambda step: None,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> None:
    """Steps through a scaler, in `parts`; `at` is told of each before it."""
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        at(step)
        optimizer.zero_grad()
        for _ in range(parts):
            x = torch.randn(32, 8, generator=generator)
            target = torch.randint(4, (32,), generator=generator)
            with torch.autocast("cpu", dtype=torch.float16):
                value = loss(model(x).float(), target) / parts
            scaler.scale(value).backward()
        scaler.step(optimizer)
        scaler.update()
