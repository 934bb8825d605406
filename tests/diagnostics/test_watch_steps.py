"""Where a step begins and ends, which are sampled, and what a wrapped or compiled model is called."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import bpkit
from bpkit.diagnostics.instruments import AccumulatedNorm, GradientNorm
from bpkit.diagnostics.schedule import Schedule
from tests.diagnostics.watched import FROM_DYNAMO, Probing, close, named, network, take, true_norms


class Wrapped:
    """As Accelerate's: no hooks of its own."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()

    def step(self) -> None:
        self.optimizer.step()


@pytest.mark.parametrize("given", ["optimizer", "wrapper", "none"])
def test_where_a_step_ends(given: str) -> None:
    model, other, probing = network(), network(), Probing()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    stranger = torch.optim.SGD(other.parameters(), 0.1)
    wrapper = Wrapped(optimizer)
    with bpkit.watch(
        model, {"optimizer": optimizer, "wrapper": wrapper, "none": None}[given], diagnostics=[probing]
    ) as watcher:
        take(other, stranger, torch.randn(2, 6))
        take(model, wrapper, torch.randn(2, 6), steps=3)
        take(other, stranger, torch.randn(2, 6))
    assert watcher.step == len(probing.samples) == 3
    take(model, optimizer, torch.randn(2, 6))
    assert watcher.step == len(probing.samples) == 3


def test_a_step_with_a_closure() -> None:
    """As under Lightning: forward and backward run inside `step`."""
    model, probing = network(), Probing()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(torch.randn(8, 6)).square().mean()
        loss.backward()
        return loss

    with bpkit.watch(model, optimizer, diagnostics=[probing]):
        for _ in range(2):
            optimizer.step(closure)
            assert close(named(probing.samples[-1], GradientNorm), true_norms(model, lambda each: each.grad))


def names_of(wrap: Callable[[nn.Module], nn.Module]) -> tuple[str, ...]:
    model = wrap(network())
    probing, optimizer = Probing(), torch.optim.SGD(model.parameters(), 0.1)
    with bpkit.watch(model, optimizer, diagnostics=[probing]):
        take(model, optimizer, torch.randn(2, 6), steps=2)
    assert None not in probing.samples[-1][AccumulatedNorm]
    return tuple(probing.samples[-1].layers)


def compiled_inside(model: nn.Module) -> nn.Module:
    model[3] = torch.compile(model[3], backend="aot_eager")
    return model


def weight_normed(model: nn.Module) -> nn.Module:
    nn.utils.parametrizations.weight_norm(model[3])
    return model


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: torch.compile(model, backend="aot_eager"),
        compiled_inside,
        weight_normed,
        lambda model: nn.DataParallel(model, device_ids=[]),
        lambda model: nn.DataParallel(torch.compile(model, backend="aot_eager"), device_ids=[]),
    ],
    ids=["compiled", "compiled inside", "parametrized", "parallel", "parallel and compiled"],
)
@pytest.mark.cpu
@FROM_DYNAMO
def test_names_are_the_users_own(wrap: Callable[[nn.Module], nn.Module]) -> None:
    assert names_of(wrap) == ("0", "3", "5")


@pytest.mark.cpu
@FROM_DYNAMO
def test_a_compiled_model_is_not_compiled_again() -> None:
    model = torch.compile(network(), backend="aot_eager")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with torch._dynamo.config.patch(error_on_recompile=True), bpkit.watch(model, optimizer, every=3):
        take(model, optimizer, torch.randn(2, 6), steps=20)


def test_which_steps_are_sampled() -> None:
    model, probing = network(), Probing()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with bpkit.watch(model, optimizer, every=5, diagnostics=[probing]) as watcher:
        watcher.schedule.budget = float("inf")  # a loaded machine must not thin it
        take(model, optimizer, torch.randn(2, 6), steps=22)
        watcher.step = 40  # as a resumed run
        take(model, optimizer, torch.randn(2, 6), steps=6)
    assert [sample.step for sample in probing.samples] == [*range(1, 11), 15, 20, 45]


def test_the_budget_thins(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0
    monkeypatch.setattr("bpkit.diagnostics.schedule.time.perf_counter", lambda: clock)
    schedule, taken = Schedule(10, 0.06), []
    for step in range(1, 2001):
        clock += 0.001
        if schedule.due(step):
            taken.append(step)
            clock += 0.002
            schedule.took(step, 0.002)
    assert taken[:10] == list(range(1, 11))
    assert schedule.every == 40  # 2 ms in 40 steps of 1 ms: within 6 %; in 20 it is not
    assert schedule.seconds == pytest.approx(0.002 * len(taken))


def test_losses_come_with_the_next_sample() -> None:
    model, probing = network(), Probing()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with bpkit.watch(model, optimizer, diagnostics=[probing]) as watcher:
        for value in (torch.tensor(3.0), 2.0, torch.tensor(torch.nan)):
            take(model, optimizer, torch.randn(2, 6))
            watcher.loss(value)
            watcher.validation(value)
    first, second, third = probing.samples
    assert (first.loss, first.loss_step) == (None, None)
    assert (second.loss, second.loss_step, second.validation) == (3.0, 1, 3.0)
    assert (third.loss, third.loss_step) == (2.0, 2)
