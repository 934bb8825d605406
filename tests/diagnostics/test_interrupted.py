"""What happens in the middle of a sampled step: the model is copied, saved, fails, or is left alone."""

from __future__ import annotations

import copy
import io
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

import bpkit
from bpkit.diagnostics.instruments import Activations, Deltas
from tests.diagnostics.by_hand import Probing, holds, network, norms, take

pytestmark = [pytest.mark.cpu, pytest.mark.usefixtures("nothing_breaks")]


def through_pickle(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def through_torch(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, through_pickle, through_torch])
@pytest.mark.parametrize("where", ["before", "between", "after backward"])
def test_a_copy_in_the_middle_of_a_sampled_step(
    copied: Callable[[nn.Module], nn.Module], where: str, probing: Probing
) -> None:
    """The copy trains unwatched; the original's sample is whole."""
    model = network()
    optimizer = SGD(model.parameters(), 0.1)
    with bpkit.watch(model, optimizer, diagnostics=[probing, "dead", "mode", "nonfinite"]) as watcher:
        take(model, optimizer)
        twin = copied(model) if where == "before" else None
        loss = model(torch.randn(8, 6)).square().mean()
        twin = copied(model) if where == "between" else twin
        optimizer.zero_grad()
        loss.backward()
        twin = copied(model) if where == "after backward" else twin
        assert twin is not None
        true = norms(model)
        take(twin, SGD(twin.parameters(), 0.1))
        optimizer.step()
        holds(probing.samples[-1], true)
    assert watcher.step == 2
    left = [
        hook
        for module in twin.modules()
        for hooks in (module._forward_hooks, module._forward_pre_hooks)
        for hook in hooks.values()
        if type(hook).__module__.startswith("bpkit")
    ]
    assert not left


LOADS = """
import sys
sys.modules["bpkit"] = None  # an import of it fails
import torch
model = torch.load("model.pt", weights_only=False)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
model(torch.randn(8, 6)).square().mean().backward()
optimizer.step()
"""


def test_a_model_saved_in_the_middle_of_a_step_loads_where_bpkit_is_not(tmp_path: Path) -> None:
    model = network()
    optimizer = SGD(model.parameters(), 0.1)
    with bpkit.watch(model, optimizer):
        take(model, optimizer)
        loss = model(torch.randn(8, 6)).square().mean()
        torch.save(model, tmp_path / "model.pt")
        loss.backward()
        optimizer.step()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", LOADS],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


class Failing(nn.Module):
    """Fails when it is told to, with some of its modules run and some not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.last = nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Linear(5, 3)
        self.fails = ""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.act(self.first(x))
        if self.fails == "forward":
            raise KeyError("the user's own")
        output = self.last(hidden)
        if self.fails == "backward":
            output.register_hook(self.fail)
        return output

    def fail(self, grad: Tensor) -> None:
        raise KeyError("the user's own")


def train_on(model: nn.Module, x: Tensor) -> None:
    model.zero_grad()
    model(x).square().mean().backward()


@pytest.mark.parametrize("fails", ["forward", "inside", "backward"])
def test_an_exception_of_the_users_in_a_sampled_step(fails: str, probing: Probing) -> None:
    model = Failing()
    optimizer = SGD(model.parameters(), 0.1)
    with bpkit.watch(model, optimizer, diagnostics=[probing]) as watcher:
        take(model, optimizer)
        model.fails = fails
        with pytest.raises((KeyError, RuntimeError)):
            train_on(model, torch.randn(8, 7 if fails == "inside" else 6))
        model.fails = ""
        for _ in range(3):
            optimizer.zero_grad()
            output = model(torch.randn(8, 6))
            output.retain_grad()
            output.square().mean().backward()
            true, delta = norms(model), output.grad.norm().item()
            optimizer.step()
            holds(probing.samples[-1], true)
            if watcher.step > 2 or fails != "backward":  # what came of a backward that broke off counts too
                assert probing.samples[-1].by_module(Deltas, "out")["last"] == pytest.approx(delta, rel=1e-6)
            assert len(probing.samples[-1].by_module(Activations, "std")) == 3
    assert watcher.step == 4


@pytest.mark.parametrize("where", ["before", "between", "after backward", "in the step"])
def test_closed_in_the_middle_of_a_step(where: str) -> None:
    model = network()
    optimizer = SGD(model.parameters(), 0.1)
    watcher = bpkit.watch(model, optimizer)
    take(model, optimizer)
    if where == "before":
        watcher.close()
    output = model(torch.randn(8, 6))
    if where == "between":
        watcher.close()
    optimizer.zero_grad()
    output.square().mean().backward()
    if where == "after backward":
        watcher.close()
    if where == "in the step":
        optimizer.register_step_pre_hook(lambda *_: watcher.close())
    optimizer.step()
    assert watcher.step == 1
    take(model, optimizer)
    hooks = [
        each for module in model.modules() for each in (module._forward_hooks, module._forward_pre_hooks)
    ]
    assert not any(hooks)
    assert not any(each._post_accumulate_grad_hooks for each in model.parameters())
