"""Training scripts as strangers write them, and what a watch of them is given."""

from __future__ import annotations

from typing import Any

import pytest

from bpkit.diagnostics import Watcher
from bpkit.diagnostics.script import Watching

HEAD = """
import sys, torch
from torch import nn
torch.manual_seed(0)
x = torch.randn(64, 4)
y = x[:, :1]
mse = nn.functional.mse_loss
def mlp(*sizes, act=nn.Tanh):
    return nn.Sequential(*[l for a, b in zip(sizes, sizes[1:]) for l in (nn.Linear(a, b), act())][:-1])
"""
LOOP = """
for _ in range(12):
    optimizer.zero_grad()
    loss = mse(model(x), y)
    loss.backward()
    optimizer.step()
"""
PLAIN = "model = mlp(4, 8, 1)\noptimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n"


class Losses:
    """What every watcher was given, by step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.given: list[tuple[int, float]] = []
        original = Watcher.loss

        def loss(watcher: Watcher, value: Any) -> None:
            self.given.append((watcher.step, float(value)))
            original(watcher, value)

        monkeypatch.setattr(Watcher, "loss", loss)


def names(watching: Watching) -> list[tuple[str, int]]:
    return [(each.name, each.steps) for each in watching.watched]
