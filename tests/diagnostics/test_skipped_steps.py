"""Overflow in float16: who made it, where steps are taken on it and where a loss scaler skips every one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn import functional as F
from torch.optim import Adam

import bpkit
from bpkit.diagnostics import Watcher
from tests.diagnostics.scaled import train

pytestmark = [pytest.mark.cpu, pytest.mark.usefixtures("nothing_breaks")]

WRONG = 15  # steps before it; the next is not sampled


class Times(nn.Module):
    """Beyond float16 where its factor is large."""

    factor = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.times, self.last = nn.Linear(8, 16), Times(), nn.Linear(16, 4)
        self.hidden = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.hidden(self.times(self.first(x).relu())).relu())


@pytest.mark.parametrize("parts", [1, 3], ids=["", "accumulated"])
@pytest.mark.parametrize("wrong", [0, WRONG], ids=["from the start", "later"])
@pytest.mark.parametrize("how", ["scaler", "scaler, fused", "scaler, named", "no scaler"])
def test_the_producer_of_an_overflow_is_named(how: str, wrong: int, parts: int) -> None:
    model = Net()
    optimizer = Adam(model.parameters(), 1e-3, fused=how == "scaler, fused")
    scaler = GradScaler("cpu", enabled=how != "no scaler", init_scale=2.0**10)

    def at(step: int) -> None:
        model.times.factor = 1.0 if step < wrong else 1e6

    given = scaler if how == "scaler, named" else None
    with bpkit.watch(model, optimizer, scaler=given, diagnostics=["nonfinite"]) as watcher:
        train(model, optimizer, scaler, wrong + 40, parts=parts, at=at)
        (finding,) = watcher.findings
    assert (finding.kind, finding.severity, finding.layers) == ("nonfinite", "critical", ("times",)), finding
    assert "'times' (Times), in its forward" in finding.advice
    if "fused" in how:
        assert wrong < finding.step < watcher.step  # they count, to no effect
    else:
        assert finding.step == wrong + 1
    if how != "no scaler":
        assert "the loss scaler skips every one" in finding.advice
        assert finding.evidence["loss_scale"] < 2.0**10


@pytest.mark.parametrize("wrong", [0, WRONG], ids=["from the start", "later"])
def test_outputs_that_overflow_are_told_from_a_mask_by_the_scale(wrong: int) -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4), times := Times())
    optimizer, scaler = Adam(model.parameters(), 1e-3), GradScaler("cpu", init_scale=2.0**10)

    def at(step: int) -> None:
        times.factor = 1.0 if step < wrong else 1e6

    with bpkit.watch(model, optimizer, diagnostics=["nonfinite"]) as watcher:
        train(model, optimizer, scaler, wrong + 40, at=at)
        (finding,) = watcher.findings
    assert (finding.step, finding.layers) == (wrong + 1, ("3",)), finding
    assert finding.evidence["loss_scale"] < 1e-3


def test_a_loss_that_no_scale_makes_finite() -> None:
    model = Net()
    optimizer, scaler = Adam(model.parameters(), 1e-3), GradScaler("cpu")

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return (F.cross_entropy(output, target) - 100).sqrt()

    with bpkit.watch(model, optimizer, diagnostics=["nonfinite"]) as watcher:
        train(model, optimizer, scaler, 60, loss=loss)
        (finding,) = watcher.findings
    assert finding.advice.count("the loss") >= 2
    assert finding.evidence["loss_scale"] < 1e-3


def healthy(watcher: Watcher) -> None:
    watcher.close()
    assert watcher.findings == []


@pytest.mark.parametrize("fused", [False, True], ids=["", "fused"])
@pytest.mark.parametrize("parts", [1, 12], ids=["", "accumulated"])
def test_a_scale_that_is_found_is_no_fault(parts: int, fused: bool) -> None:
    model = Net()
    optimizer = Adam(model.parameters(), 1e-3, fused=fused)
    scaler = GradScaler("cpu", init_scale=2.0**30, growth_interval=5)
    watcher = bpkit.watch(model, optimizer, diagnostics=["nonfinite"])
    train(model, optimizer, scaler, 50, parts=parts)
    assert watcher.step > 20
    assert scaler.get_scale() < 2.0**24
    healthy(watcher)


def test_batches_that_are_skipped_now_and_then_are_no_fault() -> None:
    model = Net()
    optimizer, scaler = Adam(model.parameters(), 1e-3), GradScaler("cpu", init_scale=2.0**10)

    def at(step: int) -> None:
        model.times.factor = 1e6 if step % 5 > 1 else 1.0

    watcher = bpkit.watch(model, optimizer, diagnostics=["nonfinite"])
    train(model, optimizer, scaler, 100, at=at)
    assert 30 < watcher.step < 50
    healthy(watcher)


def test_forwards_without_a_backward_are_no_fault() -> None:
    model = Net()
    optimizer, scaler = Adam(model.parameters(), 1e-3), GradScaler("cpu", init_scale=2.0**10)
    watcher = bpkit.watch(model, optimizer, diagnostics=["nonfinite"])
    train(model, optimizer, scaler, 3)
    model.times.factor = float("inf")
    for _ in range(50):
        model(torch.randn(32, 8))
    model.times.factor = 1.0
    train(model, optimizer, scaler, 12)
    assert watcher.step == 15
    healthy(watcher)


def test_the_hooks_on_gradients_go() -> None:
    model = Net()
    optimizer, scaler = Adam(model.parameters(), 1e-3), GradScaler("cpu", init_scale=2.0**40)

    def hooks() -> list[Any]:
        return [each for each in model.parameters() if each._backward_hooks]

    with bpkit.watch(model, optimizer, diagnostics=["nonfinite"]) as watcher:
        train(model, optimizer, scaler, 11)
        assert (watcher.step, bool(hooks())) == (0, True)
        train(model, optimizer, scaler, 20)
        assert (watcher.step > 0, bool(hooks())) == (True, False)
    assert not hooks()
