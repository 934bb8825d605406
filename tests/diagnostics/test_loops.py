"""True norms, computed by hand, in loops and models of every make."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adam

import bpkit
from bpkit.diagnostics.instruments import Deltas, GradientNorm
from tests.diagnostics.by_hand import Probing, holds, network, norms, take

pytestmark = [pytest.mark.cpu, pytest.mark.usefixtures("nothing_breaks")]


@pytest.mark.parametrize("given", ["first", "second", "none"])
def test_two_optimizers_over_one_model(given: str, probing: Probing) -> None:
    """They step in turn; each counts its own steps, and where none is named the first one's."""
    model = network()
    first, second = SGD(model[:2].parameters(), 0.1), Adam(model[2:].parameters(), 0.1)
    watched = {"first": first, "second": second, "none": None}[given]
    with bpkit.watch(model, watched, diagnostics=[probing]) as watcher:
        for _ in range(3):
            for optimizer in (first, second):
                true = take(model, optimizer)
                if optimizer is (watched or first):
                    holds(probing.samples[-1], true)
                model.zero_grad()
    assert watcher.step == len(probing.samples) == 3


def test_lbfgs_evaluates_several_times_in_a_step(probing: Probing) -> None:
    model = network()
    optimizer = LBFGS(model.parameters(), lr=0.1, max_iter=4)
    x, calls = torch.randn(8, 6), 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    with bpkit.watch(model, optimizer, diagnostics=[probing]) as watcher:
        for _ in range(3):
            optimizer.step(closure)
            holds(probing.samples[-1], norms(model))
    assert watcher.step == 3
    assert calls > 3


@pytest.mark.parametrize("named", [True, False])
def test_a_step_for_each_parameter_in_the_backward_does_not_break(named: bool) -> None:
    model, twin = network(), network()
    twin.load_state_dict(model.state_dict())

    def stepping(model: nn.Module) -> list[SGD]:
        optimizers = {each: SGD([each], 0.1) for each in model.parameters()}

        def step(parameter: nn.Parameter) -> None:
            optimizers[parameter].step()
            optimizers[parameter].zero_grad()

        for each in model.parameters():
            each.register_post_accumulate_grad_hook(step)
        return list(optimizers.values())

    (last, *_), _ = stepping(model), stepping(twin)
    with bpkit.watch(model, last if named else None):
        for _ in range(15):
            x = torch.randn(8, 6)
            for each in (model, twin):
                each(x).square().mean().backward()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_parameters_that_are_added_later(probing: Probing) -> None:
    model = network()
    optimizer = SGD(model.parameters(), 0.1)
    with bpkit.watch(model, optimizer, diagnostics=[probing]):
        true = take(model, optimizer)
        holds(probing.samples[-1], true)
        model.append(nn.Linear(3, 2))
        optimizer.add_param_group({"params": model[5].parameters()})
        take(model, optimizer)  # the step in whose middle they are noticed
        for _ in range(2):
            true = take(model, optimizer)
            holds(probing.samples[-1], true)
    assert len(probing.samples[-1][GradientNorm]) == 8
    assert probing.samples[-1].network.parameters[-1].name == "5.bias"


class Shared(nn.Module):
    """A matrix at both ends, and a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.last.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu_(self.middle(torch.tanh(self.middle(self.first(x))))))


def test_shared_weights_count_once(probing: Probing) -> None:
    model = Shared()
    optimizer = SGD(model.parameters(), 0.1)
    with bpkit.watch(model, optimizer, diagnostics=[probing]):
        for _ in range(3):
            true = take(model, optimizer)
            holds(probing.samples[-1], true)
    assert len(probing.samples[-1][GradientNorm]) == 5


class Outputs(NamedTuple):
    loss: Tensor
    parts: dict[str, Any]


class Rich(nn.Module):
    """Inputs by keyword, nested; outputs in a tuple, a dict and a list, of which some are not used."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = Inner(), nn.Linear(5, 3)

    def forward(self, *, batch: dict[str, Tensor], scale: float = 1.0) -> Outputs:
        hidden, aside = self.inner(x=batch["x"], mask=batch["mask"])
        return Outputs(self.head(hidden["a"]) * scale, {"aside": [aside, hidden["b"]], "count": 3})


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 5))

    def forward(self, x: Tensor, mask: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        product = (x @ self.weight) * mask
        return {"a": product, "b": product.detach()}, product.sum()


def test_rich_inputs_and_outputs(probing: Probing) -> None:
    model = Rich()
    optimizer = SGD(model.parameters(), 0.1)
    with bpkit.watch(model, optimizer, diagnostics=[probing]):
        for _ in range(3):
            optimizer.zero_grad()
            batch = {"x": torch.randn(8, 6), "mask": torch.ones(8, 1)}
            output = model(batch=batch, scale=2.0)
            output.loss.retain_grad()
            output.loss.square().mean().backward()
            optimizer.step()
            holds(probing.samples[-1], norms(model))
            delta = output.loss.grad.norm().item() * 2.0  # the head's output is doubled on its way
            assert probing.samples[-1].by_module(Deltas, "out")["head"] == pytest.approx(delta, rel=1e-6)


def test_two_watchers_on_one_model() -> None:
    model, one, other = network(), Probing(), Probing()
    optimizer = SGD(model.parameters(), 0.1)
    first = bpkit.watch(model, optimizer, diagnostics=[one, "dead", "nonfinite"])
    take(model, optimizer)
    second = bpkit.watch(model, optimizer, diagnostics=[other, "dead", "nonfinite"])
    for _ in range(3):
        true = take(model, optimizer)
        for probing in (one, other):
            holds(probing.samples[-1], true)
        for column in ("out", "in"):
            assert one.samples[-1].by_module(Deltas, column) == other.samples[-1].by_module(Deltas, column)
    first.close()
    true = take(model, optimizer)
    holds(other.samples[-1], true)
    assert (first.step, second.step) == (4, 4)
    second.close()
