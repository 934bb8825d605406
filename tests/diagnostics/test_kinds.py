"""One run for each kind of finding: that it is found, where, and what is advised; and one in good health."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bpkit
from bpkit.diagnostics.watcher import Watcher


def cases(count: int = 256) -> tuple[Tensor, Tensor]:
    """Four classes in 16 dimensions."""
    generator = torch.Generator().manual_seed(1)
    centres = 2 * torch.randn(4, 16, generator=generator)
    target = torch.randint(4, (count,), generator=generator)
    return centres[target] + torch.randn(count, 16, generator=generator), target


class Net(nn.Module):
    """Layers with names, activations as functions."""

    def __init__(self, activation: Callable[[Tensor], Tensor] = torch.relu) -> None:
        super().__init__()
        self.first, self.middle, self.head = nn.Linear(16, 32), nn.Linear(32, 32), nn.Linear(32, 4)
        self.extra = nn.Linear(4, 4)
        self.activation = activation
        self.detached = False
        self.spare: nn.Parameter | None = None

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.activation(self.first(x))
        hidden = self.activation(self.middle(hidden.detach() if self.detached else hidden))
        return self.extra(self.head(hidden))


def run(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    steps: int = 60,
    batch: int = 64,
    alter: Callable[[int, Tensor], Tensor] = lambda step, x: x,
    before: Callable[[int], None] = lambda step: None,
    after: Callable[[int, Watcher], None] = lambda step, watcher: None,
    told: bool = True,
    logdir: Path | None = None,
    data: tuple[Tensor, Tensor] | None = None,
) -> Watcher:
    inputs, target = data or cases()
    with bpkit.watch(model, optimizer, logdir=logdir) as watcher:
        for step in range(1, steps + 1):
            index = torch.randint(len(inputs), (batch,))
            before(step)
            optimizer.zero_grad()
            dtype = next(model.parameters()).dtype
            output = model(alter(step, inputs[index]).to(dtype)).float()
            loss = F.cross_entropy(output, target[index])
            loss.backward()
            optimizer.step()
            if told:
                watcher.loss(loss)
            after(step, watcher)
    return watcher


def sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr)


def adam(model: nn.Module, lr: float = 3e-3) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr)


def weights(model: nn.Module, name: str, *, weight: float | None = None, bias: float | None = None) -> None:
    layer = model.get_submodule(name)
    with torch.no_grad():
        if weight is not None:
            layer.weight.fill_(weight) if weight == 0 else layer.weight.mul_(weight)
        if bias is not None:
            layer.bias.fill_(bias)


def dead() -> Watcher:
    model = Net()
    weights(model, "middle", bias=-30.0)
    return run(model, sgd(model))


def dead_by_a_spike() -> Watcher:
    model = Net()

    def spike(step: int, watcher: Watcher) -> None:
        if step == 33:
            weights(model, "first", bias=-40.0)

    return run(model, adam(model), steps=120, after=spike)


def saturated() -> Watcher:
    model = Net(torch.tanh)
    weights(model, "middle", weight=200.0)
    return run(model, sgd(model, 1e-3))


def orphan() -> Watcher:
    model = Net()
    model.add_module("never", nn.Linear(3, 3))
    return run(model, adam(model))


def detached() -> Watcher:
    model = Net()
    model.detached = True
    return run(model, adam(model))


def frozen() -> Watcher:
    model = Net()
    model.middle.requires_grad_(False)
    return run(model, adam(model))


def stuck_by_rate() -> Watcher:
    model = Net()
    groups = [{"params": model.middle.parameters(), "lr": 0.0}]
    groups += [{"params": each.parameters()} for each in (model.first, model.head, model.extra)]
    return run(model, torch.optim.SGD(groups, 0.1))


def stuck_outside() -> Watcher:
    model = Net()
    held = [each for name, each in model.named_parameters() if not name.startswith("middle")]
    return run(model, torch.optim.Adam(held, 3e-3))


def stuck_by_rounding() -> Watcher:
    model = Net().bfloat16()
    return run(model, sgd(model, 2e-4))


def zero() -> Watcher:
    model = Net()
    for name in ("first", "middle", "head"):
        weights(model, name, weight=0.0, bias=0.0)
    return run(model, sgd(model))


def symmetric() -> Watcher:
    model = Net()
    for each in (model.first, model.middle):
        nn.init.constant_(each.weight, 0.05)
        nn.init.zeros_(each.bias)
    return run(model, adam(model))


def plateau() -> Watcher:
    model = Net()
    return run(model, sgd(model, 1e-7), steps=120)


def divergence() -> Watcher:
    model = Net()
    optimizer = sgd(model, 0.1)

    def late(step: int) -> None:
        optimizer.param_groups[0]["lr"] = 0.1 if step < 100 else 20.0

    return run(model, optimizer, steps=200, before=late)


def overfit() -> Watcher:
    model = nn.Sequential(nn.Linear(16, 256), nn.ReLU(), nn.Linear(256, 4))
    inputs, target = cases(24)
    target = target[torch.randperm(24, generator=torch.Generator().manual_seed(0))]
    held, wanted = cases(400)

    def validate(step: int, watcher: Watcher) -> None:
        if step % 20 == 0:
            with torch.no_grad():
                model.eval()
                watcher.validation(F.cross_entropy(model(held), wanted))
                model.train()

    return run(model, adam(model, 1e-2), steps=240, batch=24, after=validate, data=(inputs, target))


def scale() -> Watcher:
    model = Net()
    return run(model, adam(model), alter=lambda step, x: 255 * x)


def mode() -> Watcher:
    model = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))
    model[1].eval()
    return run(model, adam(model))


def mode_in_validation() -> Watcher:
    model = nn.Sequential(nn.Linear(16, 32), nn.Dropout(0.3), nn.ReLU(), nn.Linear(32, 4))
    held, wanted = cases(64)

    def validate(step: int, watcher: Watcher) -> None:
        if step % 15 == 0:
            with torch.no_grad():
                watcher.validation(F.cross_entropy(model(held), wanted))

    return run(model, adam(model), after=validate)


def update_ratio() -> Watcher:
    model = Net()
    return run(model, sgd(model, 1e-6), steps=100)


def noise() -> Watcher:
    model = Net()
    inputs, _ = cases(2000)
    target = torch.randint(4, (2000,), generator=torch.Generator().manual_seed(3))
    return run(model, adam(model, 1e-3), steps=200, data=(inputs, target))


@dataclass(frozen=True)
class Fault:
    run: Callable[[], Watcher]
    kind: str
    layers: set[str]
    advice: str


FAULTS = (
    Fault(dead, "dead", {"middle"}, "'middle' were never above zero.*bias at 0"),
    Fault(dead_by_a_spike, "dead", {"first"}, "'first' died during the run"),
    Fault(saturated, "saturated", {"middle"}, "xavier_uniform_"),
    Fault(orphan, "disconnected", {"never"}, "'never' is never called"),
    Fault(detached, "disconnected", {"first"}, r"'first' runs.*detach\(\)"),
    Fault(frozen, "frozen", {"middle"}, r"requires_grad_\(True\)"),
    Fault(stuck_by_rate, "stuck", {"middle"}, "rate of 'middle' is 0"),
    Fault(stuck_outside, "stuck", {"middle"}, "no optimizer moves it"),
    Fault(stuck_by_rounding, "stuck", {"middle"}, "rounded away"),
    Fault(zero, "zero", {"first", "middle"}, "at random"),
    Fault(symmetric, "zero", {"first"}, "stay alike"),
    Fault(plateau, "plateau", set(), "Raise the learning rate from 1e-07"),
    Fault(divergence, "divergence", set(), "lower the learning rate|not finite"),
    Fault(overfit, "overfit", set(), "Stop there"),
    Fault(scale, "scale", {"first"}, "mean 0 and variance 1"),
    Fault(mode, "mode", {"1"}, r"model.train\(\)"),
    Fault(mode_in_validation, "mode", {"1"}, r"model.eval\(\)"),
    Fault(update_ratio, "update_ratio", set(), "Raise the learning rate"),
    Fault(noise, "noise", set(), "batches of"),
)


@pytest.mark.cpu
@pytest.mark.parametrize("fault", [pytest.param(each, id=each.run.__name__) for each in FAULTS])
def test_the_fault_is_named(fault: Fault, caplog: pytest.LogCaptureFixture) -> None:
    watcher = fault.run()
    found = {each.kind: each for each in watcher.findings if each.severity != "info"}
    assert fault.kind in found, watcher.summary()
    finding = found[fault.kind]
    assert fault.layers <= set(finding.layers)
    assert re.search(fault.advice, finding.advice), finding.advice
    assert all(isinstance(value, float | int) for value in finding.evidence.values())
    assert "left out" not in caplog.text
    assert "no longer watched" not in caplog.text


@pytest.mark.cpu
@pytest.mark.parametrize("activation", [torch.relu, torch.tanh, F.gelu], ids=["relu", "tanh", "gelu"])
def test_the_same_network_in_good_health_is_quiet(activation: Callable[[Tensor], Tensor]) -> None:
    model = Net(activation)
    watcher = run(model, adam(model), steps=200)
    assert watcher.summary() == "healthy: nothing found in 200 steps"
    assert watcher.share > 0


def test_a_spike_is_recorded_with_the_steps_before_it(tmp_path: Path) -> None:
    model = Net()
    optimizer = adam(model, 1e-2)

    def spike(step: int, x: Tensor) -> Tensor:
        return -30 * x if step == 97 else x

    def ids(step: int, watcher: Watcher) -> None:
        watcher.batch(torch.tensor([step, step + 1]))  # of the step that comes

    run(model, optimizer, steps=120, alter=spike, after=ids, logdir=tmp_path)
    held = json.loads((tmp_path / "spike-97.json").read_text())
    assert held["step"] == 97
    steps = {each["step"]: each for each in held["steps"]}
    assert steps[97]["batch"] == [96, 97]
    assert steps[97]["loss"] > 10 * steps[96]["loss"]
    assert any("gradient_norms" in each for each in steps.values())


def test_a_loss_that_is_no_number_is_critical_though_the_gradient_is() -> None:
    model = Net()

    def nan(step: int, watcher: Watcher) -> None:
        watcher.loss(float("nan") if step == 20 else 1.0)

    watcher = run(model, adam(model), after=nan, told=False)
    (finding,) = [each for each in watcher.findings if each.kind == "divergence"]
    assert (finding.severity, finding.step) == ("critical", 20)
