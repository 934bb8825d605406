"""Of modules that run several times the first event tells who made a NaN, not the first call."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import bpkit
from bpkit.diagnostics import Finding

WRONG = {5: "on a sampled step", 15: "between samples"}


class Cell(nn.Module):
    """A cell of one's own, whose state becomes NaN at its fourth step, within `spoilt` or on its way."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.a, self.b, self.where, self.wrong = nn.Linear(4, 4), nn.Linear(4, 4), where, False

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(x.shape[0], 4)
        for step in range(6):
            now = self.wrong and step == 3
            state = torch.tanh(
                self.a(x) + self.b(state if not (now and self.where == "state") else state / 0)
            )
            if now and self.where == "hidden":
                state = state * torch.nan
        return state


class Spoilt(nn.Module):
    """Gives NaN in its fourth call of a forward."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.wrong, self.calls = nn.Parameter(torch.ones(4)), False, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.weight * (torch.nan if self.wrong and self.calls % 6 == 4 else 1)


class Loop(nn.Module):
    """Calls two modules in turns."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 4), Spoilt(), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        self.second.calls = 0
        for _ in range(6):
            x = self.second(torch.tanh(self.first(x)))
        return self.head(x)


def _found(model: nn.Module, spoilt: nn.Module, step: int) -> Finding:
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with bpkit.watch(model, optimizer, diagnostics=["nonfinite"]) as watcher:
        for now in range(1, step + 1):
            vars(spoilt)["wrong"] = now == step
            optimizer.zero_grad()
            model(torch.randn(8, 4)).square().mean().backward()
            optimizer.step()
    (finding,) = watcher.findings
    assert finding.step == step
    return finding


@pytest.mark.parametrize("step", WRONG, ids=WRONG.values())
def test_a_module_that_goes_wrong_in_a_late_call_is_named(step: int) -> None:
    model = Loop()
    finding = _found(model, model.second, step)
    assert finding.layers == ("second",)
    assert "in its forward" in finding.advice


@pytest.mark.parametrize("step", WRONG, ids=WRONG.values())
@pytest.mark.parametrize(("where", "between"), [("state", ("a", "b")), ("hidden", ("b",))])
def test_a_state_that_goes_wrong_on_its_way_is_not_laid_to_the_batch(
    step: int, where: str, between: tuple[str, ...]
) -> None:
    cell = Cell(where)
    finding = _found(nn.Sequential(cell, nn.Linear(4, 1)), cell, step)
    assert "the batch" not in finding.advice
    assert "between" in finding.advice
    assert {f"0.{name}" for name in between} <= set(finding.layers)


def test_the_batch_is_still_named_where_it_is_to_blame() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1)), torch.randn(8, 4)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    x[3, 1] = torch.nan
    with bpkit.watch(model, optimizer, diagnostics=["nonfinite"]) as watcher:
        model(x).square().mean().backward()
        optimizer.step()
    (finding,) = watcher.findings
    assert finding.layers == ("0",)
    assert finding.advice.startswith("the batch")
