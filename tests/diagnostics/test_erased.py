"""Gradients that are erased between the backward and the step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import bpkit


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_zero_grad_between_backward_and_step_is_named(
    to_none: bool, kind: type[torch.optim.Optimizer]
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = kind(model.parameters(), lr=0.01)
    with bpkit.watch(model, optimizer) as watcher:
        for _ in range(80):
            loss = nn.functional.cross_entropy(model(torch.randn(32, 8)), torch.randint(3, (32,)))
            loss.backward()
            optimizer.zero_grad(set_to_none=to_none)
            optimizer.step()
            watcher.loss(loss)
    finding = next(each for each in watcher.findings if each.kind == "disconnected")
    assert finding.severity == "critical"
    assert finding.step <= 5
    assert finding.layers == ("0", "2")
    assert "zero_grad() stands between" in finding.advice
    assert finding.evidence["gradient_norm_before"] > 0
    others = [each for each in watcher.findings if each.kind == "update_ratio"]
    assert all(each.severity == "info" for each in others)


@pytest.mark.parametrize("where", ["before", "behind", "in a hook"])
def test_zero_grad_in_its_place_is_in_order(where: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if where == "in a hook":  # ahead of the watch's own
        optimizer.register_step_post_hook(lambda optimizer, args, kwargs: optimizer.zero_grad())
    with bpkit.watch(model, optimizer) as watcher:
        for _ in range(40):
            if where == "before":
                optimizer.zero_grad()
            x = torch.randn(32, 8)
            nn.functional.cross_entropy(model(x), (x[:, 0] > 0).long()).backward()
            optimizer.step()
            if where == "behind":
                optimizer.zero_grad()
    assert not [each for each in watcher.findings if each.kind == "disconnected"]


def test_once_it_is_over_it_is_a_note() -> None:
    torch.manual_seed(0)
    model = nn.Linear(8, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with bpkit.watch(model, optimizer, every=1, diagnostics=["disconnected", "gradient_norm"]) as watcher:
        for step in range(20):
            x = torch.randn(32, 8)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), (x[:, 0] > 0).long()).backward()
            if step < 10:
                optimizer.zero_grad()
            optimizer.step()
    (finding,) = watcher.findings
    assert finding.severity == "info"
    assert finding.advice == "a gradient reaches it now"
