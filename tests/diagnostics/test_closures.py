"""Optimizers that are given a closure: forward and backward run inside their step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adam, Optimizer

import bpkit
from bpkit.diagnostics import Finding, Watcher
from bpkit.diagnostics.hooks import on_step
from tests.diagnostics.by_hand import Norms, Probing, holds, network, norms

pytestmark = [pytest.mark.cpu, pytest.mark.usefixtures("nothing_breaks")]

WRONG = 15  # a step that is not sampled


class Root(nn.Module):
    """Its backward is infinite, and then no number, where its input is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.spoilt = False

    def forward(self, x: Tensor) -> Tensor:
        return torch.sqrt(x * 0 if self.spoilt else x.square() + 1)


def rooted() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 5), Root(), nn.Linear(5, 3))


def closing(model: nn.Module, optimizer: Optimizer) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(torch.randn(8, 6)).square().mean()
        loss.backward()
        return loss

    return closure


def run_until_spoilt(model: nn.Sequential, step: Callable[[], Any], watcher: Watcher) -> Finding:
    for number in range(1, WRONG + 1):
        model[3].spoilt = number == WRONG  # type: ignore[assignment]
        step()
    watcher.close()
    return next(each for each in watcher.findings if each.kind == "nonfinite")


FACTORIES: dict[str, Callable[[Any], Optimizer]] = {
    "SGD": lambda parameters: SGD(parameters, 0.01),
    "LBFGS": lambda parameters: LBFGS(parameters, lr=0.01, max_iter=2),
}


@pytest.mark.parametrize("given", ["by position", "by keyword"])
@pytest.mark.parametrize("named", [True, False], ids=["named", ""])
@pytest.mark.parametrize("factory", FACTORIES.values(), ids=FACTORIES)
def test_a_producer_between_samples_is_named_in_its_step(factory: Any, named: bool, given: str) -> None:
    model = rooted()
    optimizer = factory(model.parameters())
    closure = closing(model, optimizer)
    watcher = bpkit.watch(model, optimizer if named else None, diagnostics=["nonfinite"])

    def step() -> None:
        optimizer.step(closure) if given == "by position" else optimizer.step(closure=closure)

    finding = run_until_spoilt(model, step, watcher)
    assert (finding.step, finding.layers) == (WRONG, ("3",)), finding
    assert "in its backward" in finding.advice


def test_before_comes_once_with_gradients_and_unmoved_parameters() -> None:
    model = network()
    optimizer = LBFGS(model.parameters(), lr=0.1, max_iter=4)
    calls: list[str] = []
    start = [each.detach().clone() for each in model.parameters()]

    def before(_: Optimizer) -> None:
        calls.append("before")
        assert all(each.grad is not None for each in model.parameters())
        assert all(map(torch.equal, model.parameters(), start))

    handles = on_step(optimizer, model.parameters, before, lambda _: calls.append("after"))
    closure = closing(model, optimizer)

    def noting() -> Tensor:
        calls.append("closure")
        return closure()

    optimizer.step(noting)
    assert calls[:2] == ["closure", "before"]
    assert calls.count("closure") > 1
    assert calls.count("before") == calls.count("after") == 1
    assert calls[-1] == "after"
    for handle in handles:
        handle.remove()


def test_the_closure_keeps_its_value_and_its_exception(probing: Probing) -> None:
    model = network()
    optimizer = SGD(model.parameters(), 0.1)
    inner = closing(model, optimizer)
    fails = False

    def closure() -> Tensor:
        if fails:
            raise KeyError("mine")
        return inner()

    with bpkit.watch(model, optimizer, diagnostics=[probing]) as watcher:
        assert isinstance(optimizer.step(closure), Tensor)
        fails = True
        with pytest.raises(KeyError, match="mine"):
            optimizer.step(closure)
        fails = False
        optimizer.step(closure)
        holds(probing.samples[-1], norms(model))
    assert watcher.step == len(probing.samples) == 2


@pytest.mark.parametrize("factory", FACTORIES.values(), ids=FACTORIES)
def test_training_is_the_same(factory: Any) -> None:
    def trained(watched: bool) -> list[Tensor]:
        torch.manual_seed(1)
        model = network()
        optimizer = factory(model.parameters())
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)  # wraps the step
        watcher = bpkit.watch(model, optimizer) if watched else None
        for _ in range(12):
            optimizer.step(closing(model, optimizer))
            scheduler.step()
        if watcher is not None:
            watcher.close()
            assert watcher.step == 12
        return [each.detach() for each in model.parameters()]

    assert all(map(torch.equal, trained(True), trained(False)))


class Sharp(SGD):
    """Sharpness-aware: moves by the gradient it finds, asks for that of the place, and moves back."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        parameters = [each for group in self.param_groups for each in group["params"]]
        moved = [0.05 * each.grad for each in parameters]
        torch._foreach_add_(parameters, moved)
        with torch.enable_grad():
            closure()
        torch._foreach_sub_(parameters, moved)
        return SGD.step.__wrapped__(self)  # type: ignore[attr-defined]


class Hidden(SGD):
    """The same, in a way that no parameter's version tells."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        parameters = [each for group in self.param_groups for each in group["params"]]
        start = [each.data.clone() for each in parameters]
        for each in parameters:
            each.data.add_(each.grad, alpha=0.05)
        with torch.enable_grad():
            closure()
        for each, value in zip(parameters, start, strict=True):
            each.data.copy_(value)
        return SGD.step.__wrapped__(self)  # type: ignore[attr-defined]


class Deaf(SGD):
    """Takes a closure, and never runs it."""

    def step(self, closure: Any = None) -> Any:
        return SGD.step.__wrapped__(self)  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", [Sharp, Hidden, Deaf])
def test_who_has_gradients_already_is_not_waited_for(kind: type[SGD]) -> None:
    model = network()
    optimizer = kind(model.parameters(), 0.1)
    closure = closing(model, optimizer)
    true: list[Norms] = []
    seen: list[list[Tensor]] = []
    handles = on_step(
        optimizer,
        model.parameters,
        lambda _: seen.append([each.detach().clone() for each in model.parameters()]),
        lambda _: true.append(norms(model)),
    )
    for number in range(3):
        closure()
        start = [each.detach().clone() for each in model.parameters()]
        optimizer.step(closure)
        assert len(seen) == len(true) == number + 1
        if number:  # once its way is known
            assert all(map(torch.equal, seen[-1], start))
    for handle in handles:
        handle.remove()


def test_a_compiled_step_with_a_closure(probing: Probing, capfd: pytest.CaptureFixture[str]) -> None:
    torch._dynamo.reset()
    model = network()
    optimizer = Adam(model.parameters(), torch.tensor(0.01))
    closure = closing(model, optimizer)
    step = torch.compile(lambda: optimizer.step(closure), backend="aot_eager")
    with bpkit.watch(model, optimizer, diagnostics=[probing]) as watcher:
        for _ in range(3):
            step()
            holds(probing.samples[-1], norms(model))
    assert watcher.step == 3
    assert "bpkit" not in capfd.readouterr().err
