"""Gradients over time lag against autograd through an unrolled loop, and the verdicts on them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence

import bpkit
from bpkit.diagnostics import Diagnostic, Finding, Sample
from bpkit.diagnostics.instruments import TimeLag
from bpkit.diagnostics.time_lag import TimeLags

KINDS = (nn.RNN, nn.LSTM, nn.GRU)


class Probing(Diagnostic):
    needs = (TimeLag,)

    def __init__(self) -> None:
        self.samples: list[Sample] = []

    def observe(self, sample: Sample) -> Iterable[Finding]:
        self.samples.append(sample)
        return ()


class Model(nn.Module):
    """Reads the last output, the last state (of both directions), or every case's own last output."""

    def __init__(self, kind: type[nn.RNNBase], reads: str, **settings: Any) -> None:
        super().__init__()
        self.recurrent = kind(3, 5, **settings)
        self.reads = reads

    def forward(self, x: Tensor, hx: Any = None) -> Tensor:
        output, state = self.recurrent(x, hx)
        time = 0 if x.dim() == 2 or not self.recurrent.batch_first else 1
        if self.reads in ("state", "ends"):
            state = state[0] if isinstance(state, tuple) else state
            return state[-1] if self.reads == "state" else state[-2:].transpose(0, 1)
        if self.reads == "own":
            return output[[4, 2, 7, 5], torch.arange(4)]
        return output.select(time, -1)


def cell(module: nn.RNNBase, z: Tensor, h: Tensor, c: Tensor, place: int) -> tuple[Tensor, Tensor]:
    """One step, from z = x W_ihᵀ + b_ih."""
    _, w_hh, *others = (getattr(module, name) for name in module._all_weights[place])
    e = F.linear(h, w_hh, others[1] if module.bias else None)
    if module.mode == "GRU":
        (z_r, z_u, z_n), (e_r, e_u, e_n) = z.chunk(3, -1), e.chunk(3, -1)
        u = (z_u + e_u).sigmoid()
        return (1 - u) * (z_n + (z_r + e_r).sigmoid() * e_n).tanh() + u * h, c
    if module.mode == "LSTM":
        i, f, g, o = (z + e).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        return (F.linear(h, others[-1]) if module.proj_size else h), c
    return (torch.tanh(z + e) if module.mode == "RNN_TANH" else torch.relu(z + e)), c


def unrolled(module: nn.RNNBase, x: Tensor, hx: tuple[Tensor, ...]) -> tuple[list[Tensor], Tensor]:
    """z of the first layer, by direction, and the output [T, B, D·P], step after step."""
    directions, firsts, sequence = 2 if module.bidirectional else 1, [], x
    size, count = module.proj_size or module.hidden_size, x.shape[1]
    for layer in range(module.num_layers):
        outputs = []
        for direction in range(directions):
            place = layer * directions + direction
            names = module._all_weights[place]
            bias = getattr(module, names[2]) if module.bias else None
            z = F.linear(sequence, getattr(module, names[0]), bias)
            if layer == 0:
                z = z.detach().requires_grad_()
                firsts.append(z)
            h = hx[0][place] if hx else x.new_zeros(count, size)
            c = hx[1][place] if len(hx) > 1 else x.new_zeros(count, module.hidden_size)
            steps: list[Tensor] = []
            for z_t in z.flip(0) if direction else z:
                h, c = cell(module, z_t, h, c, place)
                steps.append(h)
            outputs.append(torch.stack(steps[::-1] if direction else steps))
        sequence = torch.cat(outputs, -1)
    return firsts, sequence


def by_autograd(module: nn.RNNBase, x: Tensor, hx: tuple[Tensor, ...], error: Tensor) -> list[float]:
    """Root mean square over cases and directions of ‖∂L_T/∂z_{T-l}‖, for each l; `error` is ∂L/∂output."""
    directions = 2 if module.bidirectional else 1
    squares: list[list[float]] = [[] for _ in range(len(x))]
    for direction in range(directions):
        for case in range(x.shape[1]):
            z, output = unrolled(module, x, hx)
            own = error[:, case].chunk(directions, -1)[direction]
            if not own.any():
                continue
            order = list(range(len(x)))[:: -1 if direction else 1]
            end = max(place for place, step in enumerate(order) if own[step].any())
            part = output[order[end], case].chunk(directions)[direction]
            (delta,) = torch.autograd.grad(part @ (own[order[end]] / own[order[end]].norm()), z[direction])
            for lag in range(end + 1):
                squares[lag].append(delta[order[end - lag], case].square().sum().item())
    return [math.sqrt(sum(each) / len(each)) for each in squares if each]


SETTINGS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("plain", "last", {}),
    ("batch first, no bias", "last", {"batch_first": True, "bias": False}),
    ("state", "state", {}),
    ("own lengths", "own", {}),
    ("stacked", "last", {"num_layers": 3}),
    ("both directions", "ends", {"bidirectional": True}),
    ("both directions, one read", "state", {"bidirectional": True}),
    ("both, stacked", "last", {"bidirectional": True, "num_layers": 2}),
)
CASES = [
    *(
        pytest.param(kind, reads, more, id=f"{kind.__name__}, {name}")
        for kind in KINDS
        for name, reads, more in SETTINGS
    ),
    pytest.param(nn.RNN, "last", {"nonlinearity": "relu"}, id="RNN, relu"),
    pytest.param(nn.LSTM, "last", {"proj_size": 2, "num_layers": 2}, id="LSTM, projected"),
]


def sampled(model: Model, *inputs: Any) -> tuple[Sample, Tensor, Tensor]:
    """A sample, ∂L/∂output and ∂L/∂h_n of it."""
    optimizer, probing, kept = torch.optim.SGD(model.parameters(), 0.0), Probing(), []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        kept.extend([output[0], output[1][0] if isinstance(output[1], tuple) else output[1]])
        for each in kept:
            each.retain_grad()

    with bpkit.watch(model, optimizer, diagnostics=[probing]):
        handle = model.recurrent.register_forward_hook(keep)
        model(*inputs).sin().sum().backward()
        handle.remove()
        optimizer.step()
    grads = [torch.zeros_like(each) if each.grad is None else each.grad for each in kept]
    return probing.samples[0], grads[0], grads[1]


@pytest.mark.parametrize("convert", [False, True], ids=["torch", "bpkit"])
@pytest.mark.parametrize(("kind", "reads", "settings"), CASES)
def test_norms_are_those_of_an_unrolled_loop(
    kind: type[nn.RNNBase], reads: str, settings: dict[str, Any], convert: bool
) -> None:
    model = Model(kind, reads, **settings).double()
    x = torch.randn(8, 4, 3, dtype=torch.float64)
    directions = 2 if settings.get("bidirectional") else 1
    layers = settings.get("num_layers", 1) * directions
    sizes = [model.recurrent.proj_size or 5] + [5] * (kind is nn.LSTM)
    hx = tuple(torch.randn(layers, 4, size, dtype=torch.float64) for size in sizes)
    if convert:
        bpkit.convert(model)
    first = settings.get("batch_first")
    given = x.transpose(0, 1) if first else x
    sample, error, state = sampled(model, given, hx if len(hx) > 1 else hx[0])
    error = error.transpose(0, 1).clone() if first else error.clone()
    size = sizes[0]
    error[-1, :, :size] += state[-directions]
    if directions == 2:
        error[0, :, size:] += state[-1]
    profile = by_autograd(model.recurrent, x, hx, error)
    (values,) = [each for each in sample[TimeLag] if each is not None]
    figures = dict(zip(TimeLag.columns, values, strict=True))
    last = len(profile) - 1
    assert figures["steps"] == 7
    assert figures["first"] == pytest.approx(profile[0], rel=1e-10)
    assert figures["last"] == pytest.approx(profile[-1] if last == 7 else 0.0, rel=1e-10)
    assert figures["factor"] == pytest.approx((profile[-1] / profile[0]) ** (1 / last), rel=1e-10)
    forgotten = [lag for lag, each in enumerate(profile) if each < 1e-3 * profile[0]]
    assert figures["memory"] == (forgotten[0] if forgotten else 7)


def test_an_unbatched_sequence_and_a_long_one() -> None:
    torch.manual_seed(0)
    model, x = Model(nn.GRU, "last").double(), torch.randn(150, 3, dtype=torch.float64)
    sample, error, _ = sampled(model, x)
    (values,) = [each for each in sample[TimeLag] if each is not None]
    profile = by_autograd(model.recurrent, x[-128:, None], (), error[-128:, None])
    assert values[0] == 127
    assert values[2] == pytest.approx(profile[-1], rel=1e-8)


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.GRU(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, torch.tensor([8, 6, 5, 1]))
        return self.recurrent(packed)[1][-1]


class Own(nn.GRU):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)[0].cumsum(0)


@pytest.mark.parametrize("model", [Packed, lambda: nn.Sequential(Own(3, 5))], ids=["packed", "own forward"])
def test_what_is_not_known_is_left_out(model: Callable[[], nn.Module]) -> None:
    model, probing = model(), Probing()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with bpkit.watch(model, optimizer, diagnostics=[probing]):
        model(torch.randn(8, 4, 3)).sum().backward()
        optimizer.step()
    assert [each for each in probing.samples[0][TimeLag] if each is not None] == []


def test_a_state_too_small_for_its_square_is_measured() -> None:
    model = Model(nn.RNN, "last")
    nn.init.eye_(model.recurrent.weight_hh_l0)
    with torch.no_grad():
        model.recurrent.weight_hh_l0.mul_(1e-4)
    sample, _, _ = sampled(model, torch.randn(8, 4, 3))
    (values,) = [each for each in sample[TimeLag] if each is not None]
    assert 1e-30 < values[2] < 1e-25  # its square is no float32
    assert values[3] < 1e-4


class Reader(nn.Module):
    """Classifies by its last output."""

    def __init__(self, kind: type[nn.RNNBase], *, gain: float | None = None, **settings: Any) -> None:
        super().__init__()
        self.rnn, self.head = kind(8, 32, batch_first=True, dropout=0.0, **settings), nn.Linear(32, 8)
        if gain is not None:
            nn.init.normal_(self.rnn.weight_hh_l0, std=gain / math.sqrt(32))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


def trained(
    model: nn.Module, *, at: int, rate: float = 3e-3, steps: int = 160, length: int = 32, watch: bool = True
) -> Any:
    """Adam on sequences whose class shows at step `at`, among noise."""
    optimizer = torch.optim.Adam(model.parameters(), rate)
    watcher = bpkit.watch(model, optimizer, diagnostics=[TimeLags()]) if watch else None
    if watcher is not None:
        watcher.schedule.budget = float("inf")  # the samples are the same on a slow machine
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x = torch.randn(32, length, 8, generator=generator, device="cpu")
        target = torch.randint(8, (32,), generator=generator, device="cpu")
        x[:, at] = 3 * F.one_hot(target, 8)
        device = next(model.parameters()).device
        loss = F.cross_entropy(model(x.to(device)), target.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if watcher is not None:
            watcher.loss(loss)
    if watcher is not None:
        watcher.close()
    return watcher


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (lambda: Reader(nn.RNN, gain=0.3), "weight_hh with torch.nn.init.orthogonal_.*LSTM or GRU"),
        (lambda: Reader(nn.GRU, gain=0.1), r"update gate.*bias_ih_l0\[32:64\]"),
        (lambda: Reader(nn.LSTM), r"forget gate.*bias_ih_l0\[32:64\]"),
    ],
    ids=["RNN", "GRU", "LSTM"],
)
def test_what_was_long_ago_is_not_learned(model: Callable[[], nn.Module], says: str) -> None:
    (finding,) = trained(model(), at=0).findings
    assert (finding.kind, finding.severity, finding.layers) == ("vanishing", "warning", ("rnn",))
    assert finding.evidence["time_steps"] == 31
    assert re.search(says, finding.advice), finding.advice


def test_growth_over_time_explodes() -> None:
    (finding,) = trained(Reader(nn.RNN, gain=3, nonlinearity="relu"), at=0, steps=20).findings
    assert (finding.kind, finding.layers) == ("exploding", ("rnn",))
    assert finding.evidence["factor_per_time_step"] > 1.2
    assert "clip_grad_norm_" in finding.advice


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_run_that_needs_no_memory_is_left_alone(kind: type[nn.RNNBase]) -> None:
    watcher = trained(Reader(kind), at=-2)
    assert watcher.sample.by_module(TimeLag, "last")["rnn"] < 1e-4
    assert watcher.findings == []


def test_a_finding_is_taken_back_when_the_run_learns() -> None:
    model = Reader(nn.LSTM)
    optimizer, lags = torch.optim.Adam(model.parameters(), 1e-2), TimeLags()
    with bpkit.watch(model, optimizer, every=1, diagnostics=[lags]) as watcher:
        watcher.schedule.budget = float("inf")
        for step in range(240):
            target = torch.randint(8, (32,))
            x = torch.randn(32, 32, 8)
            x[:, 0 if step < 110 else -1] = 3 * F.one_hot(target, 8).float()
            loss = F.cross_entropy(model(x), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            watcher.loss(loss)
            if step == 109:
                assert [each.severity for each in watcher.findings] == ["warning"]
    assert [each.severity for each in watcher.findings] == ["info"]


def test_training_is_bit_for_bit_the_same() -> None:
    found = []
    for watch in (False, True):
        torch.manual_seed(0)
        model = Reader(nn.LSTM, num_layers=2)
        model.rnn.dropout = 0.3
        trained(model, at=0, steps=12, watch=watch)
        found.append([*model.state_dict().values(), torch.get_rng_state()])
    assert all(map(torch.equal, *found))
