"""A monitor never ends the run that it watches, and loses nothing of what it has found."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bpkit
from bpkit.core.errors import BpkitError
from bpkit.diagnostics import Diagnostic, Finding
from bpkit.diagnostics.instruments import Finite, Instrument
from bpkit.tensorboard.reader import runs


def steps(model: nn.Module, x: Any, count: int = 12, **settings: Any) -> bpkit.diagnostics.Watcher:
    optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], 0.1)
    with bpkit.watch(model, optimizer, **settings) as watcher:
        for _ in range(count):
            optimizer.zero_grad()
            output = model(x)
            loss = (output.abs() if output.is_complex() else output).square().mean()
            loss.backward()
            optimizer.step()
            watcher.loss(loss)
    return watcher


class Quantised(nn.Module):
    """A frozen table of bytes beside a layer that trains."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(4, 4, dtype=torch.uint8), requires_grad=False)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.table.float().mean())


class Positions(nn.Module):
    """As in nanoGPT: an embedding of one axis of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.wpe, self.head = nn.Embedding(8, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.wpe(torch.arange(x.shape[0])))


UNUSUAL: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "quantised": (Quantised, lambda: torch.randn(8, 4)),
    "complex": (
        lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)).to(torch.complex64),
        lambda: torch.randn(8, 4, dtype=torch.complex64),
    ),
    "positions": (Positions, lambda: torch.randn(8, 4)),
    "one number": (lambda: nn.Linear(1, 1), lambda: torch.randn(1, 1)),
}


@pytest.mark.cpu
@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
@pytest.mark.parametrize(("make", "batch"), UNUSUAL.values(), ids=UNUSUAL)
def test_unusual_models_are_watched_to_the_end(
    make: Callable[[], nn.Module], batch: Callable[[], Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    watcher = steps(make(), batch())
    assert watcher.step == 12
    assert "no longer" not in caplog.text
    assert "left out" not in caplog.text


class Breaks(Instrument):
    """Fails where its subclass says."""

    of = "model"

    def read(self, lived: frozenset[int]) -> list[float]:
        return [1.0]


def breaking(method: str) -> type[Breaks]:
    def fail(self: Any, *arguments: Any) -> Any:
        raise ZeroDivisionError("oops")

    return type("Broken", (Breaks,), {method: fail})


class Sees(Diagnostic):
    def __init__(self) -> None:
        self.seen = 0

    def observe(self, sample: Any) -> list[Finding]:
        self.seen += 1
        return []


@pytest.mark.cpu
@pytest.mark.parametrize(
    "method",
    ["arm", "on_output", "on_delta_in", "on_backward", "alarmed", "before_step", "after_step", "read"],
)
def test_an_instrument_that_fails_is_left_out_alone(method: str, caplog: pytest.LogCaptureFixture) -> None:
    broken = type("Needs", (Sees,), {"needs": (breaking(method),)})()
    other = Sees()
    watcher = steps(
        nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), torch.randn(3, 4), diagnostics=[broken, other]
    )
    assert watcher.step == 12
    assert other.seen >= 10
    assert broken.seen < (11 if method == "alarmed" else 2)  # it is asked between samples alone
    assert len([each for each in caplog.records if "Broken is no longer measured" in each.getMessage()]) == 1


@pytest.mark.parametrize("value", [torch.ones(3), None, "x"], ids=["tensor", "nothing", "text"])
def test_a_loss_that_is_not_one_number_is_refused_at_once(value: Any) -> None:
    model = nn.Linear(2, 2)
    with bpkit.watch(model, torch.optim.SGD(model.parameters(), 0.1)) as watcher:
        with pytest.raises(BpkitError, match=r"watcher\.loss: "):
            watcher.loss(value)
        with pytest.raises(BpkitError, match=r"watcher\.validation: "):
            watcher.validation(value)


def test_a_loss_that_is_written_over_later_is_kept_as_it_was() -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with bpkit.watch(model, optimizer) as watcher:
        for _ in range(3):
            optimizer.zero_grad()
            loss = model(torch.ones(1, 2)).square().mean()
            loss.backward()
            optimizer.step()
            held = torch.tensor([0.25])
            watcher.loss(held)
            held.zero_()
    assert watcher.sample.loss == 0.25


def test_the_optimizer_of_another_model_is_refused() -> None:
    model, other = nn.Linear(2, 2), nn.Linear(3, 3)
    with pytest.raises(BpkitError, match="holds none of the model's parameters"):
        bpkit.watch(model, torch.optim.SGD(other.parameters(), 0.1))


def test_evaluations_that_left_gradients_on_are_not_kept() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with bpkit.watch(model, optimizer) as watcher:
        for _ in range(100):
            model(torch.randn(8, 64))
        noted = watcher.instrument(Finite)._noted
        assert 0 < max(Counter(place for _, place, *_ in noted).values()) < 80  # of inputs and outputs


KILLED = """
import os, sys, torch, bpkit
from torch import nn
model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
optimizer = torch.optim.SGD(model.parameters(), 0.1)
watcher = bpkit.watch(model, optimizer, logdir=sys.argv[1])
for step in range(1, 24):
    optimizer.zero_grad()
    x = torch.full((3, 4), float("nan")) if step == 23 else torch.randn(3, 4)
    model(x).square().mean().backward()
    optimizer.step()
os._exit(9)
"""


def test_a_run_that_is_killed_has_its_verdicts_on_disk(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, timeout=120)
    assert done.returncode == 9, done.stderr.decode()
    (run,) = runs(tmp_path)
    assert [each["kind"] for each in run.verdicts.findings] == ["nonfinite"]
    assert run.verdicts.step == 23
