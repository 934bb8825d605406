"""The edge of stability: where an optimizer diverges, and the preconditioner that its update shows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

import bpkit
from bpkit.diagnostics.curvature import Curvature
from bpkit.diagnostics.edge import edge_of
from tests.diagnostics.curved import dense, made, measured, quadratic, randn


def diverges(model: nn.Module, closure: Callable[[], Tensor], optimizer: torch.optim.Optimizer) -> bool:
    start = closure().item()
    for _ in range(2000):
        optimizer.zero_grad()
        loss = closure()
        if not loss.item() < 1e6 * start:
            return True
        loss.backward()
        optimizer.step()
    return False


SGD = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.8, "nesterov": True},
    "dampened": {"momentum": 0.5, "dampening": 0.5},
}


@pytest.mark.parametrize("settings", SGD.values(), ids=SGD)
@pytest.mark.parametrize(("beyond", "unstable"), [(0.98, False), (1.02, True)])
def test_sgd_diverges_beyond_its_threshold_and_not_below(
    settings: dict[str, float], beyond: float, unstable: bool
) -> None:
    model, closure, _ = quadratic(torch.tensor([4.0, 1.0, 0.5], dtype=torch.float64))
    unit = torch.optim.SGD(model.parameters(), 1.0, **settings)
    edge = edge_of(unit, list(model.parameters()))
    assert edge is not None
    assert edge.plain
    optimizer = torch.optim.SGD(model.parameters(), beyond * edge.threshold / 4.0, **settings)
    found = measured(Curvature(closure), model, optimizer)
    assert found.sharpness / found.threshold == pytest.approx(beyond, rel=1e-6)
    assert diverges(model, closure, optimizer) is unstable


ADAPTIVE: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "adam": lambda parameters: torch.optim.Adam(parameters, 0.01),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, 0.01, betas=(0.5, 0.99)),
    "amsgrad": lambda parameters: torch.optim.Adam(parameters, 0.01, amsgrad=True),
    "bpkit": lambda parameters: bpkit.optim.Adam(parameters, 0.01),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, 0.01, momentum=0.9),
    "centered": lambda parameters: torch.optim.RMSprop(parameters, 0.01, centered=True),
    "adagrad": lambda parameters: torch.optim.Adagrad(parameters, 0.01, lr_decay=0.1),
}


@pytest.mark.parametrize("name", ADAPTIVE)
def test_an_adaptive_optimizer_divides_by_what_its_update_shows(name: str) -> None:
    """P is read off a step: the update of a constant gradient, its average settled, is −lr g / P."""
    parameter = nn.Parameter(randn(6))
    optimizer = ADAPTIVE[name]([parameter])
    momentum = optimizer.param_groups[0].get("momentum", 0.0)
    for _ in range(300):
        parameter.grad = torch.arange(1.0, 7.0, dtype=torch.float64) * (1 + 0.1 * torch.rand(()).item())
        optimizer.step()
    grad = torch.linspace(0.5, 3, 6, dtype=torch.float64)
    before, parameter.grad = parameter.detach().clone(), grad
    state = optimizer.state[parameter]
    for averaged in ("exp_avg", "momentum_buffer"):  # as if it had averaged this gradient alone
        if averaged in state:
            state[averaged].copy_(grad if averaged == "exp_avg" else torch.zeros_like(grad))
    optimizer.step()
    edge = edge_of(optimizer, [parameter])
    assert edge is not None
    rate = optimizer.param_groups[0]["lr"]
    decayed = before * (1 - rate * optimizer.param_groups[0]["weight_decay"]) if name == "adamw" else before
    update = decayed - parameter.detach()
    assert torch.allclose(edge.root(grad) ** 2, update / (rate * grad), rtol=1e-9)
    beta = optimizer.param_groups[0].get("betas", (0.0,))[0]
    expected = (2 + 2 * beta) / (1 - beta) if beta else 2 + 2 * momentum
    assert edge.threshold == pytest.approx(expected / rate)


def test_adam_is_measured_through_its_preconditioner() -> None:
    model, closure = made("mlp")
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    curvature = Curvature(closure, steps=100, every=1)
    with bpkit.watch(model, optimizer, diagnostics=[curvature]):
        for _ in range(3):
            optimizer.zero_grad()
            closure().backward()
            optimizer.step()
    found = curvature.spectrum
    parameters = list(model.parameters())
    edge = edge_of(optimizer, parameters)
    assert found is not None
    assert edge is not None
    root = edge.root(parameters_to_vector(parameters).detach())
    exact = torch.linalg.eigvalsh(root[:, None] * dense(model, closure) * root)
    assert found.sharpness == pytest.approx(exact[-1].item(), rel=1e-8)
    assert found.threshold == pytest.approx(38 / 1e-3)


def test_groups_with_rates_of_their_own_have_one_edge() -> None:
    first, second = nn.Parameter(randn(1)), nn.Parameter(randn(1))
    optimizer = torch.optim.SGD([{"params": [first], "lr": 0.1}, {"params": [second], "lr": 1e-3}], 0.1)
    model = nn.ParameterList([first, second])
    found = measured(Curvature(lambda: (8 * first**2 + 900 * second**2).sum() / 2), model, optimizer)
    assert found.eigenvalues[:2] == pytest.approx((900, 8))
    assert found.threshold == pytest.approx(20)  # of the rate 0.1
    assert found.sharpness == pytest.approx(9)  # 900 · 0.001 / 0.1: the slow group is far from its edge


def run(lr: float, *, steps: int = 12, logdir: Path | None = None) -> bpkit.diagnostics.Watcher:
    """Gradient descent on w²/2 · 4 beside a direction that falls whatever happens."""
    model = nn.ParameterList([nn.Parameter(torch.tensor([1e-3]))])
    optimizer = torch.optim.SGD(model.parameters(), lr)
    curvature = Curvature(lambda: 2 * (model[0] ** 2).sum() + 1, every=1, probes=2, density=True)
    with bpkit.watch(model, optimizer, diagnostics=[curvature], logdir=logdir) as watcher:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = 2 * (model[0] ** 2).sum() + 1
            loss.backward()
            optimizer.step()
            watcher.loss(loss)
    return watcher


@pytest.mark.parametrize(("lr", "severity"), [(0.4, None), (0.6, "info"), (4.0, "warning")])
def test_the_edge_is_a_note_and_far_beyond_it_with_a_rising_loss_a_warning(
    lr: float, severity: str | None
) -> None:
    findings = run(lr).findings
    assert [each.severity for each in findings] == ([severity] if severity else [])
    for finding in findings:
        assert finding.kind == "divergence"
        assert finding.evidence["sharpness"] == pytest.approx(4)
        assert finding.evidence["stable_up_to"] == pytest.approx(2 / lr)


def test_what_is_written(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(0.4, steps=3, logdir=tmp_path)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    names = {each for each in events.Tags()["scalars"] if each.startswith("curvature/")}
    assert names == {f"curvature/{each}" for each in ("sharpness", "most negative", "trace", "threshold")}
    assert events.Scalars("curvature/sharpness")[0].value == pytest.approx(4)
    assert "curvature/eigenvalues" in events.Tags()["tensors"]
