"""What passes through modules, and the errors that come back, against what autograd says of the same step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import bpkit
from bpkit.diagnostics import Diagnostic, Sample
from bpkit.diagnostics.instruments import Activations, Deltas, Finite, OutputError, Units


class Probing(Diagnostic):
    needs = (Activations, Deltas, Finite, OutputError, Units)

    def __init__(self) -> None:
        self.samples: list[Sample] = []

    def observe(self, sample: Sample) -> list[Any]:
        self.samples.append(sample)
        return []


class Residual(nn.Module):
    """An in-place activation, a module called twice, a residual sum, and two outputs of which one is used."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act = nn.Linear(6, 6), nn.ReLU(inplace=True)
        self.twice, self.tanh, self.head = nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.act(self.first(x))
        hidden = hidden + self.tanh(self.twice(hidden))
        hidden = hidden + self.twice(hidden)
        return {"loss": self.head(hidden), "other": hidden}


class Checkpointed(Residual):
    reentrant = False

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.act(self.first(x))

        def block(hidden: Tensor) -> Tensor:
            return hidden + self.tanh(self.twice(hidden))

        hidden = checkpoint(block, hidden, use_reentrant=self.reentrant)
        hidden = hidden + self.twice(hidden)
        return {"loss": self.head(hidden), "other": hidden}


class Reentrant(Checkpointed):
    reentrant = True


def truth(model: Residual, x: Tensor) -> tuple[dict[str, tuple[float, float]], dict[str, Tensor]]:
    """‖δ out‖ and ‖δ in‖ by module, and outputs, from a copy that is run by hand."""
    model = copy.deepcopy(model)

    def cut(tensor: Tensor) -> Tensor:
        """The same values for one consumer alone, its gradient kept."""
        alias = tensor * 1
        alias.retain_grad()
        return alias

    def kept(tensor: Tensor) -> Tensor:
        tensor.retain_grad()
        return tensor

    first = kept(model.first(x))
    act_in = cut(first)
    act = kept(torch.relu(act_in))
    a_in = cut(act)
    a = kept(model.twice(a_in))
    t_in = cut(a)
    t = kept(torch.tanh(t_in))
    hidden = kept(act + t)
    b_in = cut(hidden)
    b = kept(model.twice(b_in))
    hidden = kept(hidden + b)
    h_in = cut(hidden)
    out = kept(model.head(h_in))
    out.square().sum().backward()

    def size(*tensors: Tensor) -> float:
        return torch.cat([each.grad.flatten() for each in tensors]).norm().item()

    sizes = {
        "first": (size(first), -1.0),
        "act": (size(act), size(act_in)),
        "twice": (size(a, b), size(a_in, b_in)),
        "tanh": (size(t), size(t_in)),
        "head": (size(out), size(h_in)),
    }
    return sizes, {"first": first, "act": act, "tanh": t, "head": out}


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    optimizer.zero_grad()
    model(x)["loss"].square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("convert", [False, True], ids=["torch", "bpkit"])
@pytest.mark.parametrize("cls", [Residual, Checkpointed, Reentrant])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_deltas_are_those_of_autograd(cls: type[Residual], convert: bool) -> None:
    model = cls().double()
    x = torch.randn(5, 6, dtype=torch.float64)
    sizes, outputs = truth(model, x)
    if convert:
        bpkit.convert(model)
    optimizer, probing = torch.optim.SGD(model.parameters(), 0.0), Probing()
    with bpkit.watch(model, optimizer, diagnostics=[probing]):
        with torch.no_grad():
            model(x + 1)  # an evaluation between two steps
        model.eval()(x + 2)  # and one that forgot to turn gradients off
        model.train()
        step(model, optimizer, x)
    (sample,) = probing.samples
    out, back = sample.by_module(Deltas, "out"), sample.by_module(Deltas, "in")
    assert list(out) == ["first", "act", "twice", "tanh", "head"]
    for name, (delta_out, delta_in) in sizes.items():
        assert out[name] == pytest.approx(delta_out, rel=1e-6), name
        assert back[name] == pytest.approx(delta_in, rel=1e-6), name
    spread, mean = sample.by_module(Activations, "std"), sample.by_module(Activations, "mean")
    for name, output in outputs.items():
        assert mean[name] == pytest.approx(output.mean().item(), abs=1e-6)
        assert spread[name] == pytest.approx(output.std(correction=0).item(), rel=1e-6)
    assert sample.by_module(Activations, "zeros")["act"] == pytest.approx(
        (outputs["act"] == 0).double().mean().item()
    )
    assert set(sample.by_module(Finite, "outputs").values()) == {0.0}
    assert set(sample.by_module(Finite, "inputs").values()) == {0.0}
    error = outputs["head"].grad.square().mean().sqrt().item() * 5
    assert sample[OutputError][0] == pytest.approx(error, rel=1e-6)


def test_training_with_everything_measured_is_bit_for_bit_the_same() -> None:
    def trained(watched: bool) -> list[Tensor]:
        torch.manual_seed(0)
        model = Residual()
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        watcher = bpkit.watch(model, optimizer, diagnostics=[Probing()]) if watched else None
        for _ in range(12):
            step(model, optimizer, torch.randn(4, 6))
        if watcher is not None:
            watcher.close()
        assert not any(each._forward_hooks or each._forward_pre_hooks for each in model.modules())
        return [each.detach() for each in model.parameters()]

    for plain, watched in zip(trained(False), trained(True), strict=True):
        assert torch.equal(plain, watched)


def test_functional_transforms_pass_through() -> None:
    model, probing = Residual(), Probing()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with bpkit.watch(model, optimizer, diagnostics=[probing]):
        parameters = dict(model.named_parameters())

        def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
            return torch.func.functional_call(model, parameters, (x,))["loss"].square().sum()

        grads = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, torch.randn(3, 1, 6))
        for name, parameter in parameters.items():
            parameter.grad = grads[name].mean(0)
        optimizer.step()
    assert set(probing.samples[0][Deltas]) == {None}


class Fails(Probing):
    """Reads what cannot be read, in the middle of the forward."""

    class Broken(Activations):
        def on_output(self, call: int, place: int, module: nn.Module, outputs: list[Tensor]) -> None:
            raise ZeroDivisionError("oops")

    needs = (Broken,)


def test_a_hook_that_fails_does_not_end_the_training(caplog: pytest.LogCaptureFixture) -> None:
    model = Residual()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with bpkit.watch(model, optimizer, diagnostics=[Fails()]) as watcher:
        for _ in range(3):
            step(model, optimizer, torch.randn(4, 6))
    assert watcher.step == 3
    assert len([each for each in caplog.records if "ZeroDivisionError('oops')" in each.getMessage()]) == 1


def rectified(bias: float) -> tuple[nn.Module, Callable[[], Tensor]]:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        model[0].weight /= model[0].weight.norm(dim=1, keepdim=True)
        model[0].bias[:6] = bias
    return model, lambda: torch.randn(64, 4)


def test_dead_units_are_told_from_rare_ones() -> None:
    """Six of eight units: at -20 none ever fires; at -2.5 each does in six of a thousand cases."""
    for bias, dead in ((-20.0, 0.75), (-2.5, 0.0)):
        torch.manual_seed(1)
        model, batch = rectified(bias)
        optimizer, probing = torch.optim.SGD(model.parameters(), 0.0), Probing()
        with bpkit.watch(model, optimizer, diagnostics=[probing]):
            for _ in range(12):
                optimizer.zero_grad()
                model(batch()).square().sum().backward()
                optimizer.step()
        sample = probing.samples[-1]
        assert sample.by_module(Units, "dead") == {"1": dead}
        assert sample.by_module(Units, "silent")["1"] >= dead
        assert sample.by_module(Units, "units") == {"1": 8}
