"""Gradients over time lag in recurrences that are written by hand, against autograd's of each h_t."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bpkit
from bpkit.diagnostics import Diagnostic
from bpkit.diagnostics.instruments import TimeLag
from bpkit.diagnostics.time_lag import TimeLags

pytestmark = [pytest.mark.cpu, pytest.mark.usefixtures("nothing_breaks")]

T, B, IN, H = 9, 4, 3, 5


class Probing(Diagnostic):
    needs = (TimeLag,)


class Cells(nn.Module):
    """One of torch's cells, step after step; keeps what it gives."""

    def __init__(self, kind: type[nn.RNNCellBase], size: int = H) -> None:
        super().__init__()
        self.cell = kind(IN, size)  # type: ignore[call-arg]
        self.kept: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        state: Any = None
        for each in x:
            state = self.cell(each, state)
            self.kept.append(state[0] if isinstance(state, tuple) else state)
        return self.kept[-1]


class Elman(nn.Module):
    """An own cell: the layer of the state is the recurrence, that of the input is none."""

    def __init__(self) -> None:
        super().__init__()
        self.state, self.input = nn.Linear(H, H), nn.Linear(IN, H)
        self.kept: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(x.shape[1], H, dtype=x.dtype)
        for each in x:
            self.kept.append(self.state(h))
            h = torch.tanh(self.kept[-1] + self.input(each))
        return h


class Gated(nn.Module):
    """An own LSTM with one layer for all gates, on input and state together, and a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.Linear(IN + H, 4 * H)
        self.kept: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        h = c = torch.zeros(x.shape[1], H, dtype=x.dtype)
        for each in x:
            self.kept.append(self.gates(torch.cat([each, h], -1)))
            i, f, g, o = self.kept[-1].chunk(4, -1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = torch.where(each[:, :1] < 5, o.sigmoid() * c.tanh(), h)
        return h


class Steps(nn.Module):
    """A whole layer of torch's, called on one step of the sequence after another; keeps both its outputs."""

    def __init__(self, kind: type[nn.RNNBase], **settings: Any) -> None:
        super().__init__()
        self.layer = kind(IN, H, **settings)
        self.kept: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        state: Any = None
        for each in x.split(1):
            output, state = self.layer(each.transpose(0, 1) if self.layer.batch_first else each, state)
            self.kept.append(state[0] if isinstance(state, tuple) else state)
        return output


MODELS: dict[str, tuple[Callable[[], Any], str]] = {
    "RNNCell": (lambda: Cells(nn.RNNCell), "cell"),
    "LSTMCell": (lambda: Cells(nn.LSTMCell), "cell"),
    "GRUCell": (lambda: Cells(nn.GRUCell), "cell"),
    "own": (Elman, "state"),
    "own, gated": (Gated, "gates"),
}


def figures(model: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor]) -> dict[str, dict[str, float]]:
    """The columns of each module that has some."""
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    with bpkit.watch(model, optimizer, diagnostics=[Probing()]) as watcher:
        loss(model(x)).backward()
        optimizer.step()
    assert watcher.sample is not None
    columns = {name: watcher.sample.by_module(TimeLag, name) for name in TimeLag.columns}
    return {place: {name: each[place] for name, each in columns.items()} for place in columns["steps"]}


@pytest.mark.parametrize("every", [False, True], ids=["loss of the last", "loss of every step"])
@pytest.mark.parametrize(("build", "place"), MODELS.values(), ids=MODELS)
def test_norms_are_autograds(build: Callable[[], Any], place: str, every: bool) -> None:
    torch.manual_seed(0)
    model = build().double()

    def loss(last: Tensor) -> Tensor:
        for each in model.kept:
            each.retain_grad()
        return torch.stack(model.kept).sin().sum() if every else last.sin().sum()

    found = figures(model, torch.randn(T, B, IN, dtype=torch.float64), loss)
    norms = [each.grad.norm().item() for each in reversed(model.kept)]
    relative = [each / norms[0] for each in norms]
    assert list(found) == [place]
    assert found[place]["steps"] == T - 1
    assert found[place]["first"] == pytest.approx(1.0)
    assert found[place]["last"] == pytest.approx(relative[-1], rel=1e-6)
    assert found[place]["factor"] == pytest.approx(relative[-1] ** (1 / (T - 1)), rel=1e-6)
    forgotten = [lag for lag, each in enumerate(relative) if each < 1e-3]
    assert found[place]["memory"] == (forgotten[0] if forgotten else T - 1)


@pytest.mark.parametrize("settings", [{}, {"batch_first": True}, {"num_layers": 2}], ids=str)
@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_a_layer_that_is_called_step_by_step(kind: type[nn.RNNBase], settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = Steps(kind, **settings).double()
    lasts: list[Tensor] = []

    def loss(last: Tensor) -> Tensor:
        for each in (*model.kept, last):
            each.retain_grad()
        lasts.append(last)
        return last.sin().sum()

    found = figures(model, torch.randn(T, B, IN, dtype=torch.float64), loss)
    before = [each.grad for each in reversed(model.kept[:-1])]
    relative = [each.norm().item() / lasts[0].grad.norm().item() for each in before if each is not None]
    assert list(found) == ["layer"]
    assert found["layer"]["steps"] == len(relative) == T - 1
    assert found["layer"]["first"] == pytest.approx(1.0)
    assert found["layer"]["last"] == pytest.approx(relative[-1], rel=1e-6)


def test_a_layers_state_and_output_are_read_together() -> None:
    torch.manual_seed(0)
    model = Steps(nn.GRU).double()
    twin = Cells(nn.GRUCell).double()
    twin.cell.load_state_dict({name[:-3]: each for name, each in model.layer.state_dict().items()})
    x, outputs = torch.randn(T, B, IN, dtype=torch.float64), []
    model.layer.register_forward_hook(lambda *given: outputs.append(given[2][0]))
    found = figures(model, x, lambda _: torch.cat(outputs).sin().sum())["layer"]
    assert found == pytest.approx(figures(twin, x, lambda _: torch.stack(twin.kept).sin().sum())["cell"])


def test_each_case_begins_where_its_loss_ends() -> None:
    torch.manual_seed(0)
    model, ends = Cells(nn.GRUCell).double(), torch.tensor([5, 7, 4, 6])
    x = torch.randn(T, B, IN, dtype=torch.float64)
    mask = (torch.arange(T)[:, None] == ends)[..., None]

    def loss(_: Tensor) -> Tensor:
        for each in model.kept:
            each.retain_grad()
        return (torch.stack(model.kept) * mask).sin().sum()

    found = figures(model, x, loss)["cell"]
    grads = torch.stack([each.grad for each in model.kept])  # type: ignore[misc]
    norms = grads.norm(dim=-1)
    first = norms[ends, torch.arange(B)].square().mean().sqrt()
    assert found["steps"] == 7
    assert found["first"] == pytest.approx(1.0)
    assert found["last"] == pytest.approx((norms[0, 1] / first).item(), rel=1e-6)


def test_a_loss_that_reads_nothing_has_no_lag() -> None:
    model = Cells(nn.GRUCell)
    assert figures(model, torch.randn(T, B, IN), lambda last: (0 * last).sum())["cell"]["first"] == 0


class Frozen(nn.Module):
    """A trained activation that frozen layers share."""

    def __init__(self) -> None:
        super().__init__()
        self.act, self.head = nn.PReLU(), nn.Linear(H, 2)
        self.layers = nn.ModuleList(nn.Linear(H, H).requires_grad_(False) for _ in range(5))

    def forward(self, x: Tensor) -> Tensor:
        for each in self.layers:
            x = self.act(each(x))
        return self.head(x)


def test_frozen_layers_between_are_no_recurrence() -> None:
    assert figures(Frozen(), torch.randn(B, H), lambda output: output.sum()) == {}


class Routed(nn.Module):
    """A module whose first output carries no gradient, called on what it gave."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = Masked()

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(B, H)
        for _ in range(T):
            mask, h = self.layer(h)
        return h * mask


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(H, H))

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(h @ self.weight + 1)
        return (h > 0).float(), h


def test_the_output_that_carries_a_gradient_is_listened_to() -> None:
    found = figures(Routed(), torch.randn(1), lambda output: output.sum())
    assert found["layer"]["steps"] == T - 1


def test_the_loss_scale_and_half_precision_cancel() -> None:
    torch.manual_seed(0)
    model, x = Cells(nn.GRUCell), torch.randn(T, B, IN)
    one = figures(model, x, lambda last: last.sum())["cell"]
    model.kept.clear()
    assert figures(model, x, lambda last: 1024 * last.sum())["cell"] == pytest.approx(one)


class Shared(nn.Module):
    """Called several times, never on what it gave: a head, and layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.act, self.layers = nn.Linear(H, IN), nn.Tanh(), nn.ModuleList()
        self.tied = nn.Linear(H, H)
        self.layers.extend(nn.Linear(H, H) for _ in range(5))
        self.first = nn.Linear(IN, H)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x[0])
        total = torch.zeros(())
        for each in self.layers:
            h = self.act(each(h) + self.tied(x[1] @ torch.ones(IN, H)))
            total = total + self.head(h).square().sum()
        return total


def test_a_module_that_is_merely_shared_is_no_recurrence() -> None:
    assert figures(Shared(), torch.randn(T, B, IN), lambda total: total) == {}


class Truncated(Cells):
    """Its state goes on from piece to piece, its gradient does not."""

    def forward(self, x: Tensor) -> Tensor:
        h, total = torch.zeros(B, H), torch.zeros(())
        for step, each in enumerate(x):
            h = self.cell(each, h.detach() if step == 4 else h)
            total = total + h.sum() * (step in (3, 8))
        return total


def test_a_state_that_is_detached_ends_the_lag() -> None:
    found = figures(Truncated(nn.GRUCell), torch.randn(T, B, IN), lambda total: total)
    assert found["cell"]["steps"] == T - 4 - 1


class Reader(nn.Module):
    """Classifies by the last state of a cell."""

    def __init__(self, kind: type[nn.RNNCellBase], gain: float) -> None:
        super().__init__()
        self.cell, self.head = kind(8, 32), nn.Linear(32, 8)  # type: ignore[call-arg]
        nn.init.normal_(self.cell.weight_hh, std=gain / math.sqrt(32))

    def forward(self, x: Tensor) -> Tensor:
        state: Any = None
        for each in x.unbind(1):
            state = self.cell(each, state)
        return self.head(state[0] if isinstance(state, tuple) else state)


@pytest.mark.parametrize(
    ("kind", "says"),
    [(nn.RNNCell, "LSTM or GRU"), (nn.GRUCell, "bias_ih[32:64]"), (nn.LSTMCell, "bias_ih[32:64]")],
)
def test_what_was_long_ago_is_not_learned(kind: type[nn.RNNCellBase], says: str) -> None:
    torch.manual_seed(0)
    model = Reader(kind, 0.1)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    with bpkit.watch(model, optimizer, diagnostics=[TimeLags()]) as watcher:
        watcher.schedule.budget = float("inf")
        for _ in range(160):
            x, target = torch.randn(32, 32, 8), torch.randint(8, (32,))
            x[:, 0] = 3 * F.one_hot(target, 8)
            loss = F.cross_entropy(model(x), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            watcher.loss(loss)
    (finding,) = watcher.findings
    assert (finding.kind, finding.layers) == ("vanishing", ("cell",))
    assert finding.evidence["time_steps"] == 31
    assert says in finding.advice, finding.advice
