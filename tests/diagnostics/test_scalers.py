"""A loss scaler that comes, goes and is met again."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import SGD

import bpkit
from bpkit.diagnostics.instruments import LossScale
from tests.diagnostics.by_hand import Norms, Probing, holds, network, norms

pytestmark = [pytest.mark.cpu, pytest.mark.usefixtures("nothing_breaks")]

SCALE = 256.0


@pytest.mark.parametrize("other", [False, True], ids=["", "another steps through it"])
def test_a_run_that_drops_its_scaler_is_measured_on(other: bool, probing: Probing) -> None:
    """As one does that goes from float16 to bfloat16, and back, for one of two models or for all."""
    model, second = network(), nn.Linear(2, 1)
    optimizer, others = SGD(model.parameters(), 0.01), SGD(second.parameters(), 0.01)
    scaler = GradScaler("cpu", init_scale=SCALE)
    scaled = [True] * 3 + [False] * 3 + [True] * 2
    true: list[Norms] = []
    with bpkit.watch(model, optimizer, diagnostics=[probing]) as watcher:
        for through in scaled:
            optimizer.zero_grad()
            if other:
                scaler.scale(second(torch.ones(1, 2)).sum()).backward()
                scaler.step(others)
            loss = model(torch.randn(8, 6)).square().mean()
            (scaler.scale(loss) if through else loss).backward()
            true.append(norms(model, SCALE if through else 1.0))
            if through:
                scaler.step(optimizer)
            else:
                optimizer.step()
            if through or other:
                scaler.update()
    assert not watcher.left_out
    for sample, by_hand, through in zip(probing.samples, true, scaled, strict=True):
        holds(sample, by_hand)
        assert sample[LossScale][0] == (SCALE if through else None)


def test_a_scaler_that_is_switched_off_is_none(probing: Probing) -> None:
    model = network()
    optimizer, scaler = SGD(model.parameters(), 0.01), GradScaler("cpu", enabled=False)
    with bpkit.watch(model, optimizer, diagnostics=[probing]):
        for _ in range(3):
            optimizer.zero_grad()
            scaler.scale(model(torch.randn(8, 6)).square().mean()).backward()
            true = norms(model)
            scaler.step(optimizer)
            scaler.update()
            holds(probing.samples[-1], true)
