"""Diagnostics that were asked for and found nothing to look at say so."""

from __future__ import annotations

import pytest
import torch
from torch.optim import SGD

import bpkit
from tests.diagnostics.by_hand import network, take

pytestmark = pytest.mark.cpu


@pytest.mark.parametrize("converted", [False, True])
def test_an_audit_without_a_backward_to_look_at(converted: bool) -> None:
    model = network()
    if converted:
        bpkit.convert(model)
    optimizer = SGD(model.parameters(), 0.1)
    with bpkit.watch(model, optimizer, diagnostics=["audit"]) as watcher:
        for _ in range(3):
            take(model, optimizer)
    notes = [(each.kind, each.severity) for each in watcher.findings]
    assert notes == ([] if converted else [("audit", "info")])
    assert ("nothing was compared" in watcher.summary()) is not converted


def test_a_curvature_without_a_loss() -> None:
    model = network()
    optimizer = SGD(model.parameters(), 0.1)
    with bpkit.watch(model, optimizer, diagnostics=["curvature"]) as watcher:
        take(model, optimizer)
    assert "curvature needs the loss" in watcher.summary()
    assert torch.isfinite(next(model.parameters())).all()
