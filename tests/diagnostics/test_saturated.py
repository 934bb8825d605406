"""Saturation on the way is a fault; once next to nothing of the loss is left it is certainty."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import bpkit


@pytest.mark.parametrize(("left", "severity"), [(0.02, "info"), (0.6, "critical")])
def test_what_saturates_when_all_is_fitted_is_a_note(left: float, severity: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3))
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    with bpkit.watch(model, optimizer, every=2, diagnostics=["saturated"]) as watcher:
        for step in range(60):
            if step == 30:
                with torch.no_grad():
                    model[2].weight.mul_(1000)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(torch.randn(32, 8)), torch.randint(3, (32,))).backward()
            optimizer.step()
            watcher.loss(left + (1 - left) * max(0.0, 1 - step / 20))
    (finding,) = watcher.findings
    assert finding.severity == severity
    assert finding.layers == ("2", "3")
    assert finding.step > 30
