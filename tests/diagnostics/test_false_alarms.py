"""Runs in good health that look like a fault: nothing graver than a note; and the faults beside them."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bpkit
from bpkit.core.finding import Finding
from bpkit.diagnostics.disconnected import Disconnected
from bpkit.diagnostics.exploding import Exploding
from bpkit.diagnostics.frozen import Frozen
from bpkit.diagnostics.history import History
from bpkit.diagnostics.learning import guesses
from bpkit.diagnostics.ledger import Ledger
from bpkit.diagnostics.network import Network, ParameterInfo
from bpkit.diagnostics.sample import Sample
from bpkit.diagnostics.update_ratio import UpdateRatio
from bpkit.diagnostics.vanishing import Vanishing
from bpkit.diagnostics.watcher import Watcher
from bpkit.diagnostics.zero import Zero


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(3)


def finding(watcher: Watcher, kind: str) -> Finding | None:
    return next((each for each in watcher.findings if each.kind == kind), None)


def severity(watcher: Watcher, kind: str) -> str | None:
    found = finding(watcher, kind)
    return None if found is None else found.severity


def mlp(*widths: int) -> nn.Sequential:
    pairs = pairwise(widths)
    return nn.Sequential(*[layer for pair in pairs for layer in (nn.Linear(*pair), nn.Tanh())][:-1])


def train(model: nn.Module, watcher: Watcher, loss: Tensor) -> None:
    assert watcher.optimizer is not None
    watcher.optimizer.zero_grad()
    loss.backward()
    watcher.optimizer.step()
    watcher.loss(loss)


@pytest.mark.parametrize("first", [True, False], ids=["registered first", "registered last"])
def test_a_target_network_is_not_frozen_by_mistake(first: bool) -> None:
    online, head = mlp(8, 8, 8, 8), mlp(8, 8, 8)
    target = copy.deepcopy(online).requires_grad_(False)
    parts = {"online": online, "head": head}
    model = nn.ModuleDict({"target": target, **parts} if first else {**parts, "target": target})
    optimizer = torch.optim.Adam([*online.parameters(), *head.parameters()])
    with bpkit.watch(model, optimizer, every=1, diagnostics=[Frozen()]) as watcher:
        for _ in range(6):
            x = torch.randn(16, 8)
            train(model, watcher, F.mse_loss(head(online(x)), target(x)))
    assert severity(watcher, "frozen") == "info"


def test_a_frozen_layer_between_two_that_train_is() -> None:
    model = mlp(8, 8, 8, 8)
    model[2].requires_grad_(False)
    optimizer = torch.optim.Adam(model.parameters())
    with bpkit.watch(model, optimizer, every=1, diagnostics=[Frozen()]) as watcher:
        for _ in range(6):
            train(model, watcher, model(torch.randn(16, 8)).square().mean())
    found = finding(watcher, "frozen")
    assert found is not None
    assert (found.severity, found.layers) == ("warning", ("2",))


@pytest.mark.parametrize("depths", [(2, 1), (1,)], ids=["two", "one"])
def test_layers_unfrozen_one_after_another_follow_a_schedule(depths: tuple[int, ...]) -> None:
    model = mlp(8, 8, 8, 8, 8)
    layers = [each for each in model if isinstance(each, nn.Linear)]
    for layer in layers[: max(depths)]:
        layer.requires_grad_(False)
    optimizer = torch.optim.Adam(model.parameters())
    with bpkit.watch(model, optimizer, every=1, diagnostics=[Frozen()]) as watcher:
        for step in range(24):
            if step % 8 == 7 and step // 8 < len(depths):
                layers[depths[step // 8] - 1].requires_grad_(True)
            train(model, watcher, model(torch.randn(16, 8)).square().mean())
    assert severity(watcher, "frozen") == "info"


class Routed(nn.Module):
    """Experts, one of which is called in a step."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor, *places: int) -> Tensor:
        for place in places:
            x = self.experts[place](x)
        return x


@pytest.mark.parametrize(
    "kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.Adagrad], ids=["SGD", "Adam", "Adagrad"]
)
def test_an_expert_that_runs_between_samples_is_not_disconnected(kind: type[torch.optim.Optimizer]) -> None:
    model = Routed()
    optimizer = kind(model.parameters(), lr=1e-3)  # type: ignore[call-arg]
    with bpkit.watch(model, optimizer, every=10, budget=1.0, diagnostics=[Disconnected()]) as watcher:
        for step in range(1, 400):
            sampled = watcher.schedule.due(watcher.step + 1)
            called = 0 if sampled else 1 + step % 2
            train(model, watcher, model(torch.randn(4, 8), called).square().mean())
    found = finding(watcher, "disconnected")
    assert found is not None
    assert found.layers == ("experts.3",)


def test_where_routes_vary_an_uncalled_layer_is_given_longer() -> None:
    model = Routed()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    with bpkit.watch(model, optimizer, every=1, budget=1.0, diagnostics=[Disconnected()]) as watcher:
        for step in range(1, 60):
            train(model, watcher, model(torch.randn(4, 8), step % 3).square().mean())
            if step == 40:
                assert not watcher.findings
    assert finding(watcher, "disconnected") is not None


def test_a_layer_that_a_gradient_reaches_late_is_a_note() -> None:
    model = Routed()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    with bpkit.watch(model, optimizer, every=1, budget=1.0, diagnostics=[Disconnected()]) as watcher:
        for step in range(1, 40):
            places = (0,) if step <= 20 else (0, 1, 2, 3)
            train(model, watcher, model(torch.randn(4, 8), *places).square().mean())
            if step == 20:
                assert severity(watcher, "disconnected") == "warning"
    assert severity(watcher, "disconnected") == "info"


def guessing(losses: list[float]) -> bool:
    history = History()
    history.add_losses(enumerate(losses, 1))
    network = Network((ParameterInfo("head.weight", "head", (10, 4), matrix=True),), ())
    return guesses(Sample(step=len(losses), network=network, readings={}, history=history))


def test_a_loss_that_falls_through_chance_does_not_guess() -> None:
    noise = (0.02 * torch.randn(100, generator=torch.Generator().manual_seed(1))).tolist()
    chance = math.log(10)
    assert not guessing([chance + 0.4 - 0.0053 * step + each for step, each in enumerate(noise)])
    assert guessing([chance + each for each in noise])
    assert guessing([chance + 2 * math.exp(-step / 5) + each for step, each in enumerate(noise)])
    assert guessing([chance + 0.2 * math.exp(-step / 50) for step in range(100)])  # settles, without noise


def test_a_verdict_of_exploding_is_taken_back_once_the_run_learns() -> None:
    model = mlp(16, 16, 16, 4)
    x = torch.randn(128, 16)
    y = x[:, :4].argmax(1)
    optimizer = torch.optim.SGD(model.parameters(), 0.2)
    with bpkit.watch(model, optimizer, every=1, budget=1.0, diagnostics=[Exploding()]) as watcher:
        for step in range(1, 160):
            loss = F.cross_entropy(model(x), y)
            scale = 1e4 if 20 <= step < 24 else 1.0
            optimizer.zero_grad()
            (loss * scale).backward()
            if scale > 1:
                saved = copy.deepcopy(model.state_dict())
            optimizer.step()
            if scale > 1:
                model.load_state_dict(saved)
            watcher.loss(loss)
            if step == 24:
                assert severity(watcher, "exploding") in ("warning", "critical")
    assert severity(watcher, "exploding") == "info"


def test_vanishing_is_not_taken_back_because_nothing_arrives_at_all() -> None:
    layers = [layer for _ in range(12) for layer in (nn.Linear(16, 16), nn.Sigmoid())]
    model = nn.Sequential(*layers, nn.Linear(16, 4))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with bpkit.watch(model, optimizer, every=1, budget=1.0, diagnostics=[Vanishing()]) as watcher:
        for step in range(1, 60):
            loss = model(torch.randn(32, 16)).square().mean() + 1
            optimizer.zero_grad()
            (loss * (1.0 if step < 30 else 0.0)).backward()
            optimizer.step()
            watcher.loss(torch.ones(()))
            if step == 29:
                assert severity(watcher, "vanishing") == "critical"
    assert severity(watcher, "vanishing") == "critical"


def test_what_a_cut_leaves_of_the_updates_is_a_note() -> None:
    ledger = Ledger()
    for kind in ("disconnected", "update_ratio"):
        ledger.note(
            kind, Finding(kind=kind, severity="warning", layers=("a",), step=1, last_step=1, advice="mend")
        )
    assert [each.severity for each in ledger.findings] == ["warning", "info"]


class Scaled(nn.Module):
    """Units that start alike and have biases of their own, and a scale for every element of a table."""

    def __init__(self) -> None:
        super().__init__()
        self.alike, self.head = nn.Linear(16, 16), nn.Linear(16, 4)
        self.scale = nn.Parameter(torch.ones(4, 4))
        nn.init.constant_(self.alike.weight, 0.05)
        nn.init.uniform_(self.alike.bias, -1e-4, 1e-4)
        self.head.weight = nn.Parameter(
            torch.linspace(0.1, 0.4, 4)[:, None].repeat(1, 16), requires_grad=False
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.alike(x * self.scale.flatten())))
        return out


def test_rows_that_move_as_one_are_alike_and_a_scale_of_every_element_is_not() -> None:
    model = Scaled()
    optimizer = torch.optim.SGD(
        [{"params": [*model.alike.parameters(), model.head.bias]}, {"params": model.scale, "lr": 0.2}], 0.05
    )
    with bpkit.watch(model, optimizer, every=1, budget=1.0, diagnostics=[Zero(), UpdateRatio()]) as watcher:
        for _ in range(60):
            x = torch.randn(64, 16)
            target = x[:, :4].sum(1, keepdim=True).tanh().expand(-1, 4)
            train(model, watcher, F.mse_loss(model(x), target))
    found = finding(watcher, "zero")
    assert found is not None
    assert found.layers == ("alike",)
