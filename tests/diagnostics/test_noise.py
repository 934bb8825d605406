"""Gradients of single cases against `torch.func`, what is made of them, and the verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import bpkit
from bpkit.diagnostics import Diagnostic, Finding, Sample
from bpkit.diagnostics.instruments import AccumulatedNorm, PerSample
from bpkit.diagnostics.noise import Noise

BATCH = 12  # of which three are looked at: 0, 4 and 8


class Probing(Diagnostic):
    needs = (PerSample, AccumulatedNorm)

    def __init__(self) -> None:
        self.samples: list[Sample] = []

    def observe(self, sample: Sample) -> Iterable[Finding]:
        self.samples.append(sample)
        return ()


def loss_of(output: Tensor) -> Tensor:
    """A loss of each case that is no multiple of the next one's, [cases]."""
    weights = torch.linspace(0.5, 2, output[0].numel(), dtype=output.dtype).view_as(output[0])
    return (output.sin() * weights).flatten(1).sum(1)


def by_func(model: nn.Module, *inputs: Tensor) -> dict[str, Tensor]:
    """‖g_n‖² of every case by layer, from one gradient a case."""
    parameters = {name: each.detach() for name, each in model.named_parameters()}
    buffers = {name: each.detach().clone() for name, each in model.named_buffers()}

    def loss(parameters: dict[str, Tensor], *case: Tensor) -> Tensor:
        output = functional_call(model, (parameters, buffers), tuple(each[None] for each in case))
        return loss_of(output).sum()

    grads = vmap(grad(loss), in_dims=(None, *[0] * len(inputs)))(parameters, *inputs)
    squares: dict[str, Tensor] = {}
    for name, each in grads.items():
        layer = name.rpartition(".")[0]
        squares[layer] = squares.get(layer, 0) + each.flatten(1).square().sum(1)
    return squares


def sampled(model: nn.Module, *inputs: Tensor, micro: int = 1, mean: bool = True) -> Sample:
    optimizer, probing = torch.optim.SGD(model.parameters(), 0.0), Probing()
    with bpkit.watch(model, optimizer, diagnostics=[probing]):
        optimizer.zero_grad()
        for part in zip(*(each.chunk(micro) for each in inputs), strict=True):
            losses = loss_of(model(*part))
            (losses.mean() / micro if mean else losses.sum()).backward()
        optimizer.step()
    return probing.samples[0]


def some(squares: Tensor, cases: int = BATCH) -> float:
    """The mean over the cases that are looked at."""
    count = max(1, min(8, -(-cases // 4)))
    return squares[:: cases // count][:count].mean().item()


class Twice(nn.Module):
    """One layer used twice, an in-place ReLU after it, and another that is used once."""

    def __init__(self, layer: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.layer, self.act, self.head = layer, nn.ReLU(inplace=True), head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.layer(self.act(self.layer(x)))))


class Checkpointed(Twice):
    def forward(self, x: Tensor) -> Tensor:
        x = checkpoint(lambda x: self.act(self.layer(x)), x, use_reentrant=False)
        return self.head(self.act(self.layer(x)))


class Positions(nn.Module):
    """Tokens with repeats, and a position table whose axis 0 is no batch."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(7, 4, **settings), nn.Embedding(5, 4)
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.tokens(x) + self.places(torch.arange(x.shape[1]))))


@dataclass(frozen=True)
class Case:
    name: str
    model: Callable[[], nn.Module]
    shape: tuple[int, ...]
    without: frozenset[str] = frozenset()  # layers that have no figure

    def inputs(self) -> Tensor:
        if isinstance(self.model(), Positions):
            return torch.randint(7, (BATCH, *self.shape))
        return torch.randn(BATCH, *self.shape, dtype=torch.float64)


def chain(*layers: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*layers)


CASES = (
    Case("Linear", chain(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3, bias=False)), (5,)),
    Case("Linear, few positions", chain(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 30)), (3, 30)),
    Case("Linear, many positions", chain(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), (2, 9, 3)),
    Case("Conv1d", chain(nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2)), (4, 11)),
    Case("Conv2d", chain(nn.Conv2d(3, 4, (3, 2), padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1)), (3, 6, 5)),
    Case("Conv2d, same", chain(nn.Conv2d(2, 4, 4, padding="same", bias=False)), (2, 6, 5)),
    Case("Conv2d, circular", chain(nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular")), (2, 6, 5)),
    Case("Conv2d, depthwise", chain(nn.Conv2d(4, 8, 3, groups=4)), (4, 6, 5)),
    Case("Conv3d", chain(nn.Conv3d(2, 3, 2, stride=(1, 2, 1))), (2, 4, 5, 3)),
    Case("ConvTranspose", chain(nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2)), (4, 3, 4)),
    Case("LayerNorm", chain(nn.LayerNorm((3, 4)), nn.Linear(4, 3), nn.LayerNorm(3, bias=False)), (2, 3, 4)),
    Case("RMSNorm", chain(nn.RMSNorm(4), nn.Linear(4, 3)), (3, 4)),
    Case("GroupNorm", chain(nn.Conv1d(4, 4, 1), nn.GroupNorm(2, 4)), (4, 5)),
    Case("BatchNorm, eval", lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).eval(), (4,)),
    Case("Embedding", Positions, (5,), frozenset({"places"})),
    Case("Embedding, padding", lambda: Positions(padding_idx=2), (5,), frozenset({"places"})),
    Case("twice", lambda: Twice(nn.Linear(4, 4), nn.Linear(4, 3)), (3, 4)),
    Case("twice, convolution", lambda: Twice(nn.Conv1d(2, 2, 3, padding=1), nn.GroupNorm(1, 2)), (2, 4)),
    Case("checkpointed", lambda: Checkpointed(nn.Linear(4, 4), nn.Linear(4, 3)), (3, 4)),
)


@pytest.mark.parametrize("convert", [False, True], ids=["torch", "bpkit"])
@pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel")
@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])
def test_gradients_of_single_cases_are_those_of_torch_func(case: Case, convert: bool) -> None:
    model, inputs = case.model().double(), case.inputs()
    plain = Twice(model.layer, model.head) if isinstance(model, Checkpointed) else model
    squares = by_func(plain, inputs)
    if convert:
        bpkit.convert(model)
    sample = sampled(model, inputs)
    found = sample.by_module(PerSample, "square")
    assert set(found) == set(squares) - case.without
    for layer, value in found.items():
        assert value == pytest.approx(some(squares[layer]), rel=1e-10), layer
    assert set(sample.by_module(PerSample, "cases").values()) == {BATCH}


def test_contributions_to_a_batch_norm_add_up_to_its_gradient() -> None:
    model = nn.Sequential(nn.Conv1d(2, 3, 2), nn.BatchNorm1d(3)).double()
    inputs = torch.randn(1, 2, 5, dtype=torch.float64)  # one case, so that it is the whole sum
    sample = sampled(model, inputs)
    for layer, square in sample.by_module(PerSample, "square").items():
        assert square**0.5 == pytest.approx(sample.by_layer(AccumulatedNorm)[layer], rel=1e-10, abs=1e-12)


def test_micro_batches_are_one_batch() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    inputs = torch.randn(16, 4, dtype=torch.float64)
    squares = by_func(model, inputs)
    sample = sampled(model, inputs, micro=2)  # two of each eight are looked at
    assert set(sample.by_module(PerSample, "cases").values()) == {16}
    for layer, value in sample.by_module(PerSample, "square").items():
        expected = squares[layer][[0, 4, 8, 12]].mean().item()
        assert value == pytest.approx(expected, rel=1e-10)


def test_a_sum_over_cases_has_the_noise_scale_of_the_mean() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    inputs = torch.randn(32, 4, dtype=torch.float64)
    found = []
    for mean in (True, False):
        noise = Noise()
        sample = _with(noise, model, inputs, mean=mean)
        found.append(noise.columns(sample)["noise"])
    assert found[0] == pytest.approx(found[1], rel=1e-9)


def _with(noise: Noise, model: nn.Module, inputs: Tensor, *, mean: bool) -> Sample:
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    with bpkit.watch(model, optimizer, diagnostics=[noise]) as watcher:
        losses = loss_of(model(inputs))
        (losses.mean() if mean else losses.sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return watcher.sample


class SequenceFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.recurrent, self.head = nn.GRU(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(x)[0])


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.one(x)))


class Standardised(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight / self.weight.norm(), self.bias)


class OverTwice(nn.Module):
    """Two losses, gone through one after the other: the first layer has an error from each."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        loss_of(hidden).sum().backward(retain_graph=True)
        return self.head(hidden)


@pytest.mark.parametrize(
    ("model", "known"),
    [
        (SequenceFirst, set()),
        (Tied, {"head"}),
        (lambda: nn.Sequential(Standardised(4, 4), nn.Linear(4, 3)), {"1"}),
        (
            lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 3)),
            {"1"},
        ),
        (lambda: nn.Sequential(nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 3)), {"1"}),
        (OverTwice, {"head"}),
    ],
    ids=["sequence first", "tied", "own forward", "parametrized", "frozen", "two errors"],
)
def test_what_is_not_known_is_left_out(model: Callable[[], nn.Module], known: set[str]) -> None:
    sample = sampled(model().double(), torch.randn(BATCH, 6, 4, dtype=torch.float64))
    assert set(sample.by_module(PerSample, "square")) == known


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 4, 4)),
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(128, 4),
    )


def trained(
    model: nn.Module, *, rate: float, batch: int, steps: int = 200, random: bool = False, watch: bool = True
) -> Any:
    """SGD on four noisy classes, or on labels drawn at random for every batch."""
    optimizer = torch.optim.SGD(model.parameters(), rate)
    watcher = bpkit.watch(model, optimizer, diagnostics=[Noise()]) if watch else None
    if watcher is not None:
        watcher.schedule.budget = float("inf")  # the samples are the same on a slow machine
    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(4, 16, generator=generator, device="cpu")
    device = next(model.parameters()).device
    for _ in range(steps):
        target = torch.randint(4, (batch,), generator=generator, device="cpu")
        x = centres[target] + torch.randn(batch, 16, generator=generator, device="cpu")
        label = torch.randint(4, (batch,), generator=generator, device="cpu") if random else target
        loss = F.cross_entropy(model(x.to(device)), label.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if watcher is not None:
            watcher.loss(loss)
    if watcher is not None:
        watcher.close()
    return watcher


@pytest.mark.parametrize("model", [mlp, cnn])
def test_random_labels_are_noise(model: Callable[[], nn.Module]) -> None:
    (finding,) = trained(model(), rate=0.05, batch=64, random=True).findings
    assert (finding.kind, finding.severity) == ("noise", "warning")
    assert finding.evidence["noise_scale"] > 3 * finding.evidence["batch"]
    assert finding.step <= 150
    assert "targets" in finding.advice


def test_a_batch_of_one_that_gets_nowhere_is_noise() -> None:
    still = trained(mlp(), rate=0.01, batch=1, steps=600, random=True)
    assert still.findings == []  # six hundred cases are too few to say so
    rising = trained(mlp(), rate=0.4, batch=1, steps=600, random=True)
    assert [each.kind for each in rising.findings] == ["noise"]


@pytest.mark.parametrize(
    ("model", "rate", "batch"),
    [(mlp, 0.05, 32), (mlp, 0.05, 1), (mlp, 0.005, 1), (mlp, 0.001, 32), (mlp, 0.05, 256), (cnn, 0.05, 8)],
)
def test_a_run_that_learns_is_left_alone(model: Callable[[], nn.Module], rate: float, batch: int) -> None:
    assert trained(model(), rate=rate, batch=batch).findings == []


def test_training_is_bit_for_bit_the_same() -> None:
    found = []
    for watch in (False, True):
        torch.manual_seed(0)
        model = cnn()
        trained(model, rate=0.05, batch=8, steps=12, watch=watch)
        found.append([*model.state_dict().values(), torch.get_rng_state()])
    assert all(map(torch.equal, *found))


def test_the_noise_scale_is_that_of_known_gradients() -> None:
    """y = w·x + ε, ε of variance 4, x of variance 1, w off by 1: tr Σ and ‖G‖² are known in mean."""
    model, features = nn.Linear(10, 1, bias=False), 10
    optimizer, noise = torch.optim.SGD(model.parameters(), 0.0), Noise()
    with bpkit.watch(model, optimizer, diagnostics=[noise]) as watcher, torch.no_grad():
        model.weight.fill_(0.0)
        model.weight[0, 0] = 1.0
        for _ in range(10):
            x = torch.randn(4096, features)
            with torch.enable_grad():
                (model(x)[:, 0] + 2 * torch.randn(4096)).square().mean().div(2).backward()
            optimizer.step()
            optimizer.zero_grad()
    # g = x (x_1 + 2 ε): E‖g‖² = (10 + 2) + 4 · 10, G = (1, 0, ...)
    assert noise.columns(watcher.sample)["noise"]["model"] == pytest.approx(52 - 1, rel=0.3)
