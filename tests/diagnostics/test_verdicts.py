"""Seeded runs, faulty and healthy: which kinds a watch finds, and that it is silent on the rest."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bpkit

STEPS = 80
Optimize = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


def blobs() -> tuple[Tensor, Tensor]:
    """512 cases of ten classes in 64 dimensions, to be read as vectors, 8 × 8 images or sequences."""
    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(10, 64, generator=generator, device="cpu")
    target = torch.randint(10, (512,), generator=generator, device="cpu")
    return centres[target] + torch.randn(512, 64, generator=generator, device="cpu"), target


def words() -> tuple[Tensor, Tensor]:
    """Sequences of 12 tokens out of 40; the target is the class of the first."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(40, (512, 12), generator=generator, device="cpu")
    return tokens, tokens[:, 0] % 10


def sgd(lr: float, momentum: float = 0.0) -> Optimize:
    return lambda parameters: torch.optim.SGD(parameters, lr, momentum)


def adam(lr: float) -> Optimize:
    return lambda parameters: torch.optim.Adam(parameters, lr)


def mlp(
    depth: int,
    activation: type[nn.Module],
    *,
    gain: float | None = None,
    bias: bool = True,
    norm: type[nn.Module] | None = None,
) -> nn.Sequential:
    """`depth` hidden layers of 64; weights of torch's default size, or gain / √(fan in)."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(64, 64, bias=bias), *([norm(64)] if norm else []), activation()]
    model = nn.Sequential(*layers, nn.Linear(64, 10, bias=bias))
    for layer in model:
        if gain is not None and isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=gain / math.sqrt(64))
            if bias:
                nn.init.zeros_(layer.bias)
    return model


HE = math.sqrt(2)


def cnn(*, norm: bool) -> nn.Module:
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 8, 8))]
    for width_in, width_out in ((1, 8), (8, 8), (8, 8), (8, 8)):
        layers += [nn.Conv2d(width_in, width_out, 3, padding=1)]
        layers += [nn.BatchNorm2d(width_out), nn.ReLU()] if norm else [nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10))


class Recurrent(nn.Module):
    def __init__(
        self, kind: type[nn.RNNBase], *, gain: float | None = None, steps: int = 8, **kwargs: str
    ) -> None:
        super().__init__()
        self.steps = steps
        self.recurrent = kind(64 // steps, 48, batch_first=True, **kwargs)
        self.head = nn.Linear(48, 10)
        if gain is not None:
            nn.init.normal_(self.recurrent.weight_hh_l0, std=gain / math.sqrt(48))

    def forward(self, input: Tensor) -> Tensor:
        output, _ = self.recurrent(input.unflatten(1, (self.steps, -1)))
        return self.head(output[:, -1])


class Residual(nn.Module):
    def __init__(self, blocks: int, *, zero: bool = False, norm: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(64) if norm else nn.Identity(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)
            )
            for _ in range(blocks)
        )
        self.head = nn.Linear(64, 10)
        for block in self.blocks if zero else ():
            nn.init.zeros_(block[3].weight)

    def forward(self, input: Tensor) -> Tensor:
        for block in self.blocks:
            input = input + block(input)
        return self.head(input)


class Transformer(nn.Module):
    def __init__(self, *, tied: bool = False) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, norm_first=True, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.embedding = nn.Embedding(40, 32)
        self.head = nn.Linear(32, 40)
        if tied:
            nn.init.normal_(self.embedding.weight, std=0.1)
            self.head.weight = self.embedding.weight

    def forward(self, input: Tensor) -> Tensor:
        return self.head(self.encoder(self.embedding(input)).mean(1))[:, :10]


class Sparse(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Embedding(5000, 8, sparse=True), nn.Flatten(), nn.Linear(96, 64), nn.ReLU())
        self.extend(mlp(3, nn.ReLU, gain=HE))


def frozen() -> nn.Module:
    model = mlp(6, nn.ReLU, gain=HE)
    return model.requires_grad_(False).append(nn.Linear(10, 10))


def last_layer(std: float) -> nn.Module:
    model = mlp(5, nn.ReLU, gain=HE)
    nn.init.normal_(model[-1].weight, std=std)
    return model


class Fails(nn.Module):
    """Gives NaN from its fifth call on."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.calls = nn.Linear(64, 32), nn.Linear(32, 10), 0

    def forward(self, input: Tensor) -> Tensor:
        self.calls += 1
        hidden = self.first(input)
        return self.last(torch.sqrt(hidden) if self.calls > 4 else hidden)


@dataclass(frozen=True)
class Run:
    name: str
    model: Callable[[], nn.Module]
    optimizer: Optimize
    kinds: frozenset[str] = field(
        default=frozenset()
    )  # those that count as finding the fault; empty: healthy
    data: Callable[[], tuple[Tensor, Tensor]] = blobs
    batch: int = 64
    clip: float | None = None
    steps: int = STEPS
    watched_loss: bool = True
    says: str = ""


VANISHING, EXPLODING = frozenset({"vanishing"}), frozenset({"exploding"})
FAULTY = (
    Run("sigmoid, 12 deep", lambda: mlp(12, nn.Sigmoid), sgd(0.1), VANISHING, says="Sigmoid.*1/4.*kaiming"),
    Run(
        "sigmoid, 12 deep, Adam", lambda: mlp(12, nn.Sigmoid), adam(1e-3), VANISHING, says="Sigmoid.*kaiming"
    ),
    Run("tanh, 30 deep", lambda: mlp(30, nn.Tanh, gain=0.6), sgd(0.1), VANISHING, says="Tanh"),
    Run(
        "small weights", lambda: mlp(8, nn.ReLU, gain=0.1), sgd(0.1), VANISHING, says="of He's size.*kaiming"
    ),
    Run("small weights, no bias", lambda: mlp(8, nn.ReLU, gain=0.1, bias=False), sgd(0.1), VANISHING),
    Run("default weights, no loss", lambda: mlp(16, nn.ReLU), sgd(0.05), VANISHING, watched_loss=False),
    Run(
        "large weights",
        lambda: mlp(16, nn.ReLU, gain=4),
        sgd(0.01),
        EXPLODING,
        says="times He's size.*kaiming",
    ),
    Run("large weights, Adam", lambda: mlp(16, nn.ReLU, gain=4), adam(1e-3), EXPLODING),
    Run("chaotic tanh", lambda: mlp(20, nn.Tanh, gain=4), sgd(0.01), EXPLODING),
    Run("rate", lambda: mlp(3, nn.ReLU), sgd(10), EXPLODING, says="learning rate"),
    Run(
        "recurrence",
        lambda: Recurrent(nn.RNN, gain=2.5, steps=32, nonlinearity="relu"),
        sgd(0.05),
        EXPLODING,
        says="recurrent.*clip_grad_norm_.*orthogonal_",
    ),
    Run(
        "NaN in a layer", Fails, sgd(0.1), frozenset({"nonfinite"}), says="between 'first'.*and 'last'.*sqrt"
    ),
)
HEALTHY = (
    Run("MLP", lambda: mlp(3, nn.ReLU, gain=HE), sgd(0.05, 0.9)),
    Run("MLP, 12 deep", lambda: mlp(12, nn.ReLU, gain=HE), adam(1e-3)),
    Run("MLP, 8 deep, BatchNorm", lambda: mlp(8, nn.ReLU, norm=nn.BatchNorm1d), sgd(0.1)),
    Run("sigmoid, 3 deep", lambda: mlp(3, nn.Sigmoid), adam(3e-3)),
    Run("CNN", lambda: cnn(norm=False), sgd(0.05, 0.9)),
    Run("CNN, BatchNorm", lambda: cnn(norm=True), sgd(0.05, 0.9)),
    Run("LSTM", lambda: Recurrent(nn.LSTM), adam(3e-3)),
    Run("clipped RNN", lambda: Recurrent(nn.RNN), sgd(0.1), clip=1.0),
    Run("residual, 20 deep", lambda: Residual(20, norm=True), adam(1e-3)),
    Run("residual, zero-initialised", lambda: Residual(8, zero=True), sgd(0.05, 0.9)),
    Run("transformer", Transformer, adam(1e-3), data=words),
    Run("tied weights", lambda: Transformer(tied=True), adam(1e-3), data=words),
    Run("sparse embedding", Sparse, sgd(0.1), data=words),
    Run("frozen backbone", frozen, sgd(0.1)),
    Run("zero last layer", lambda: last_layer(0.0), sgd(0.05)),
    Run("large last layer", lambda: last_layer(2.0), sgd(0.01)),
    Run("near convergence", lambda: mlp(5, nn.ReLU, gain=HE), adam(3e-3), batch=512, steps=200),
)


def watched(run: Run, device: torch.device) -> bpkit.diagnostics.Watcher:
    model = run.model().to(device)
    optimizer = run.optimizer([each for each in model.parameters() if each.requires_grad])
    inputs, target = (each.to(device) for each in run.data())
    with bpkit.watch(model, optimizer, budget=1.0) as watcher:
        for step in range(run.steps):
            batch = torch.arange(step * run.batch, (step + 1) * run.batch) % len(inputs)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs[batch]), target[batch])
            loss.backward()
            if run.clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), run.clip)
            optimizer.step()
            if run.watched_loss:
                watcher.loss(loss)
    return watcher


@pytest.mark.parametrize("run", [pytest.param(run, id=run.name) for run in FAULTY])
def test_the_fault_is_found(run: Run, device: torch.device, caplog: pytest.LogCaptureFixture) -> None:
    watcher = watched(run, device)
    found = [each for each in watcher.findings if each.kind in run.kinds and each.severity != "info"]
    assert found, watcher.summary()
    (finding,) = found
    assert 1 <= finding.step <= 40
    assert set(finding.layers) <= set(watcher.sample.layers)
    assert finding.layers
    assert finding.evidence
    assert "left out" not in caplog.text
    assert re.search(run.says, finding.advice), finding.advice


@pytest.mark.parametrize("run", [pytest.param(run, id=run.name) for run in HEALTHY])
def test_a_healthy_run_is_left_alone(
    run: Run, device: torch.device, caplog: pytest.LogCaptureFixture
) -> None:
    watcher = watched(run, device)
    assert watcher.summary().splitlines()[0] == f"healthy: nothing found in {run.steps} steps"
    assert all(finding.severity == "info" for finding in watcher.findings)
    assert not caplog.records
