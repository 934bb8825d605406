"""A small training by hand, to which what is seen under a framework is held."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

from bpkit.diagnostics import Diagnostic, Finding
from bpkit.diagnostics.instruments import AccumulatedNorm, GradientNorm
from bpkit.diagnostics.sample import Sample

LR = 0.1


class Probing(Diagnostic):
    """Keeps every sample; no step is left out, however slow the machine."""

    needs = (GradientNorm, AccumulatedNorm)

    def __init__(self) -> None:
        self.samples: list[Sample] = []

    def attach(self, watcher: Any) -> None:
        watcher.schedule.budget = float("inf")

    def observe(self, sample: Sample) -> list[Finding]:
        self.samples.append(sample)
        return []


@dataclass
class ByHand:
    """Norms by step and parameter, as the optimizer used them and before clipping, and the losses."""

    at_step: list[list[float]] = field(default_factory=list)
    before_clip: list[list[float]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def agrees(self, samples: list[Sample], *, rel: float = 1e-5) -> None:
        assert [sample.step for sample in samples] == list(range(1, len(self.at_step) + 1))
        for place, sample in enumerate(samples):
            assert list(sample[GradientNorm]) == pytest.approx(self.at_step[place], rel=rel)
            if place:  # a watch that begins within a step has not seen how its gradients came
                assert list(sample[AccumulatedNorm]) == pytest.approx(self.before_clip[place], rel=rel)
        for sample in samples:
            if sample.loss is not None and sample.loss_step is not None:
                assert sample.loss == pytest.approx(self.losses[sample.loss_step - 1], rel=rel)
        assert samples[-1].loss_step == len(samples) - 1


def norms(model: nn.Module) -> list[float]:
    return [p.grad.double().norm().item() for p in model.parameters() if p.grad is not None]


@pytest.fixture
def probing() -> Probing:
    return Probing()


@pytest.fixture
def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


@pytest.fixture
def sigmoids() -> nn.Sequential:
    """It does not learn."""
    layers = [each for _ in range(12) for each in (nn.Linear(16, 16), nn.Sigmoid())]
    return nn.Sequential(nn.Linear(4, 16), *layers, nn.Linear(16, 1))


@pytest.fixture
def data() -> TensorDataset:
    x = torch.randn(48, 4)
    return TensorDataset(x, x[:, :1] - x[:, 1:2])


@pytest.fixture
def loader(data: TensorDataset) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(data, batch_size=4)


@pytest.fixture
def by_hand(model: nn.Sequential, loader: DataLoader[tuple[Tensor, ...]]) -> Callable[..., ByHand]:
    model = copy.deepcopy(model)

    def run(*, accumulate: int = 1, clip: float | None = None, bf16: bool = False) -> ByHand:
        optimizer = torch.optim.SGD(model.parameters(), lr=LR)
        seen, total = ByHand(), 0.0
        for place, (x, y) in enumerate(loader, 1):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
                loss = mse_loss(model(x).float(), y) / accumulate
            loss.backward()
            total += loss.item()
            if place % accumulate == 0:
                seen.before_clip.append(norms(model))
                if clip is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), clip)
                seen.at_step.append(norms(model))
                seen.losses.append(total)
                optimizer.step()
                optimizer.zero_grad()
                total = 0.0
        return seen

    return run
