"""True norms, computed by hand, under mixed precision, checkpoints and functional calls."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW
from torch.utils.checkpoint import checkpoint

import bpkit
from bpkit.diagnostics.instruments import Activations, Deltas, LossScale, Units
from tests.diagnostics.by_hand import Norms, Probing, holds, network, norms

pytestmark = [pytest.mark.cpu, pytest.mark.usefixtures("nothing_breaks")]
LOSS_SCALE, CLIP = 2.0**12, 1e-2
FACTORIES: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adam for-loop": lambda parameters: Adam(parameters, 0.01, foreach=False),
    "adam foreach": lambda parameters: Adam(parameters, 0.01, foreach=True),
    "adamw fused": lambda parameters: AdamW(parameters, 0.01, fused=True),
    "sgd fused": lambda parameters: SGD(parameters, 0.01, momentum=0.9, fused=True),
}


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
    true: list[tuple[Norms, Norms]] = []
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
        holds(sample, used, accumulated)
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
            holds(probing.samples[-1], used, accumulated)


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
                holds(probing.samples[-1], true, rel=1e-9)
        seen[each] = probing.samples
    for plain, again in zip(seen["plain"], seen[how], strict=True):
        columns = ((Deltas, "out"), (Deltas, "in"), (Activations, "std"), (Units, "cases"))
        for instrument, column in columns:  # what runs again is not another case
            assert again.by_module(instrument, column) == pytest.approx(
                plain.by_module(instrument, column), rel=1e-9
            )


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
            holds(probing.samples[-1], true)
