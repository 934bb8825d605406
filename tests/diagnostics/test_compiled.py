"""True norms, computed by hand, of what is compiled; watching compiles nothing again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam

import bpkit
from bpkit.diagnostics.instruments import GradientNorm
from tests.diagnostics.by_hand import Probing, holds, norms

pytestmark = [pytest.mark.cpu, pytest.mark.usefixtures("nothing_breaks")]
CLIP = 1e-2
FROM_DYNAMO = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


class Net(nn.Module):
    """Of a user's own class: of torch's containers in place nothing would be compiled as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 5), Inner()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)))


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.act, self.out = nn.Linear(5, 4), nn.ReLU(inplace=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.act(self.layer(x)))


Ways = tuple[nn.Module, nn.Module]  # what is called, and what is watched
HOW: Any = {"backend": "aot_eager", "fullgraph": True}


def whole(model: Net) -> Ways:
    compiled = torch.compile(model, **HOW)
    return compiled, compiled


def whole_watched_inside(model: Net) -> Ways:
    return torch.compile(model, **HOW), model


def in_place(model: Net) -> Ways:
    model.compile(**HOW)
    return model, model


def a_part(model: Net) -> Ways:
    model.last = torch.compile(model.last, **HOW)
    return model, model


def a_part_in_place(model: Net) -> Ways:
    model.last.compile(**HOW)
    return model, model


COMPILED = [whole, whole_watched_inside, in_place, a_part, a_part_in_place]


@pytest.mark.parametrize("warm", [False, True], ids=["", "compiled before"])
@pytest.mark.parametrize("way", COMPILED)
@FROM_DYNAMO
def test_compiled(way: Any, warm: bool, probing: Probing, capfd: pytest.CaptureFixture[str]) -> None:
    """Compiled once: sampled steps and others run the same code; nothing is said about it."""
    torch._dynamo.reset()
    calls, watched = way(Net())
    if warm:
        calls(torch.randn(8, 6)).square().mean().backward()
    optimizer = Adam(watched.parameters(), 0.01)
    strict = torch._dynamo.config.patch(error_on_recompile=True)
    with strict, bpkit.watch(watched, optimizer, every=3, diagnostics=[probing]) as watcher:
        for _ in range(16):
            optimizer.zero_grad()
            calls(torch.randn(8, 6)).square().mean().backward()
            accumulated = norms(watched)
            nn.utils.clip_grad_norm_(watched.parameters(), CLIP)
            used = norms(watched)
            optimizer.step()
            if probing.samples[-1].step == watcher.step:
                holds(probing.samples[-1], used, accumulated)
    assert [each.step for each in probing.samples] == [*range(1, 11), 12, 15]
    calls(torch.randn(8, 6))
    assert capfd.readouterr().err == ""


def test_a_compiled_training_step(probing: Probing) -> None:
    """The model is called inside a compiled function, and compiled into it."""
    torch._dynamo.reset()
    model = Net()
    optimizer = SGD(model.parameters(), 0.1)

    @torch.compile(**HOW)
    def loss(x: Tensor) -> Tensor:
        return model(x).square().mean()

    with torch._dynamo.config.patch(error_on_recompile=True):
        with bpkit.watch(model, optimizer, every=3, diagnostics=[probing]):
            for _ in range(14):
                optimizer.zero_grad()
                loss(torch.randn(8, 6)).backward()
                true = norms(model)
                optimizer.step()
        assert list(probing.samples[-1][GradientNorm]) == pytest.approx(true) or probing.samples[-1].step < 14


@pytest.mark.parametrize("named", [True, False])
def test_a_compiled_step_of_the_optimizer(
    named: bool, probing: Probing, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nothing of the watch is compiled with it."""
    torch._dynamo.reset()
    model = Net()
    optimizer = Adam(model.parameters(), torch.tensor(0.01))
    step = torch.compile(lambda: optimizer.step(), backend="aot_eager")
    with bpkit.watch(model, optimizer if named else None, every=3, diagnostics=[probing]) as watcher:
        for _ in range(13):
            optimizer.zero_grad()
            model(torch.randn(8, 6)).square().mean().backward()
            true = norms(model)
            step()
            if probing.samples[-1].step == watcher.step:
                holds(probing.samples[-1], true)
    assert [each.step for each in probing.samples] == [*range(1, 11), 12]
    assert "bpkit" not in capfd.readouterr().err
