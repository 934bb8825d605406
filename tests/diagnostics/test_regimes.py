"""True norms, computed by hand, in every way that people train: mixed precision, checkpointing, compiled."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW
from torch.utils.checkpoint import checkpoint

import bpkit
from bpkit.diagnostics import Diagnostic, Finding
from bpkit.diagnostics.instruments import AccumulatedNorm, Activations, Deltas, GradientNorm, LossScale
from bpkit.diagnostics.sample import Sample

pytestmark = pytest.mark.cpu
FROM_DYNAMO = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
LOSS_SCALE, CLIP = 2.0**12, 1e-2
FACTORIES: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adam for-loop": lambda parameters: Adam(parameters, 0.01, foreach=False),
    "adam foreach": lambda parameters: Adam(parameters, 0.01, foreach=True),
    "adamw fused": lambda parameters: AdamW(parameters, 0.01, fused=True),
    "sgd fused": lambda parameters: SGD(parameters, 0.01, momentum=0.9, fused=True),
}


class Probing(Diagnostic):
    """Keeps every sample; no step is left out, however slow the machine."""

    needs = (GradientNorm, AccumulatedNorm)
    wants = (Deltas, Activations, LossScale)

    def __init__(self) -> None:
        self.samples: list[Sample] = []

    def attach(self, watcher: Any) -> None:
        watcher.schedule.budget = float("inf")

    def observe(self, sample: Sample) -> list[Finding]:
        self.samples.append(sample)
        return []


@pytest.fixture
def probing() -> Probing:
    return Probing()


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing that is watched breaks, in any test here."""
    yield
    lines = [each.getMessage() for each in caplog.get_records("call") if each.levelno >= logging.WARNING]
    assert not [line for line in lines if "left out" in line or "no longer watched" in line]


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.ReLU(inplace=True), nn.Linear(4, 3))


def norms(model: nn.Module, factor: float = 1.0) -> list[float]:
    return [each.grad.double().norm().item() / factor for each in model.parameters()]


def holds(sample: Sample, accumulated: list[float], used: list[float], rel: float = 1e-6) -> None:
    assert list(sample[AccumulatedNorm]) == pytest.approx(accumulated, rel=rel)
    assert list(sample[GradientNorm]) == pytest.approx(used, rel=rel)


@pytest.mark.parametrize("clip", [False, True], ids=["", "clipped"])
@pytest.mark.parametrize("parts", [1, 3], ids=["", "accumulated"])
@pytest.mark.parametrize("factory", FACTORIES.values(), ids=FACTORIES)
def test_a_loss_scaler_is_found(
    factory: Any, parts: int, clip: bool, probing: Probing, request: pytest.FixtureRequest
) -> None:
    """The third of five steps overflows: nothing changes, it is no sample and no finding.

    Scaler and optimizer skip such a step; a fused one takes it, to no effect, and that counts as a step.
    """
    model = network()
    optimizer = factory(model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=LOSS_SCALE)
    true: list[tuple[list[float], list[float]]] = []
    with bpkit.watch(model, optimizer, diagnostics=[probing, "nonfinite", "scale"]) as watcher:
        for step in range(5):
            optimizer.zero_grad()
            for _ in range(parts):
                loss = model(torch.randn(8, 6)).square().mean() / parts
                scaler.scale(loss * (torch.inf if step == 2 else 1.0)).backward()
            accumulated = norms(model, scaler.get_scale())
            if clip:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            used = norms(model) if clip else accumulated
            scaler.step(optimizer)
            scaler.update()
            if step != 2:
                true.append((accumulated, used))
    assert scaler.get_scale() == LOSS_SCALE / 2
    assert watcher.step == (5 if "fused" in request.node.callspec.id else 4)
    assert not watcher.findings
    for sample, (accumulated, used) in zip(probing.samples, true, strict=True):
        holds(sample, accumulated, used)
    assert [sample[LossScale][0] for sample in probing.samples] == [LOSS_SCALE] * 2 + [LOSS_SCALE / 2] * 2


@pytest.mark.parametrize("parts", [1, 3])
def test_under_bf16_autocast(parts: int, probing: Probing) -> None:
    model = network()
    optimizer = Adam(model.parameters(), 0.01)
    with bpkit.watch(model, optimizer, diagnostics=[probing]):
        for _ in range(3):
            optimizer.zero_grad()
            for _ in range(parts):
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    output = model(torch.randn(8, 6))
                assert output.dtype is torch.bfloat16
                output.float().square().mean().backward()
            accumulated = norms(model)
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            used = norms(model)
            optimizer.step()
            holds(probing.samples[-1], accumulated, used)


class Block(nn.Module):
    """A residual block, run again in the backward if `how` says so."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.layer, self.act, self.out = nn.Linear(5, 5), nn.ReLU(inplace=True), nn.Linear(5, 5)

    def inner(self, x: Tensor) -> Tensor:
        return self.out(self.act(self.layer(x)))

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "plain":
            return x + self.inner(x)
        return x + checkpoint(self.inner, x, use_reentrant=self.how == "reentrant")


def blocks(how: str) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 5), Block(how), Block(how), nn.Linear(5, 2)).double()


@pytest.mark.parametrize("how", ["reentrant", "without reentry"])
@pytest.mark.parametrize("parts", [1, 2], ids=["", "accumulated"])
def test_what_is_checkpointed_shows_what_the_plain_model_shows(how: str, parts: int) -> None:
    """Gradient norms by hand; δ and activations as of the same model without checkpoints."""
    seen = {}
    for each in ("plain", how):
        model, probing = blocks(each), Probing()
        optimizer = SGD(model.parameters(), 0.1)
        with bpkit.watch(model, optimizer, diagnostics=[probing]):
            for _ in range(3):
                optimizer.zero_grad()
                for _ in range(parts):
                    model(torch.randn(4, 5, dtype=torch.float64)).square().mean().backward()
                true = norms(model)
                optimizer.step()
                holds(probing.samples[-1], true, true, rel=1e-9)
        seen[each] = probing.samples
    for plain, again in zip(seen["plain"], seen[how], strict=True):
        for instrument, column in ((Deltas, "out"), (Deltas, "in"), (Activations, "std")):
            assert again.by_module(instrument, column) == pytest.approx(
                plain.by_module(instrument, column), rel=1e-9
            )


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
                holds(probing.samples[-1], accumulated, used)
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


def test_a_functional_call_with_other_weights(probing: Probing) -> None:
    """Gradients belong to the weights that are handed in; the module's own get them by hand."""
    model = network()
    optimizer = SGD(model.parameters(), 0.1)
    twin = copy.deepcopy(model)
    with bpkit.watch(model, optimizer, diagnostics=[probing]):
        for _ in range(3):
            x = torch.randn(8, 6)
            own = dict(model.named_parameters())
            optimizer.zero_grad()
            torch.func.functional_call(model, own, (x,)).square().mean().backward()
            held = {name: each.detach().clone().requires_grad_() for name, each in own.items()}
            twin_grads = torch.autograd.grad(
                torch.func.functional_call(twin, held, (x,)).square().mean(), list(held.values())
            )
            true = [each.double().norm().item() for each in twin_grads]
            optimizer.step()
            holds(probing.samples[-1], true, true)
