"""A small network under a watch, and the true norms of its gradients by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor, nn

from bpkit.diagnostics import Diagnostic, Finding
from bpkit.diagnostics.instruments import AccumulatedNorm, GradientNorm, GradientRate, WeightNorm
from bpkit.diagnostics.sample import Sample

FROM_DYNAMO = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


class Probing(Diagnostic):
    """Asks for everything and keeps every sample."""

    needs = (GradientNorm, AccumulatedNorm, WeightNorm, GradientRate)

    def __init__(self) -> None:
        self.samples: list[Sample] = []

    def observe(self, sample: Sample) -> list[Finding]:
        self.samples.append(sample)
        return []


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(6, 5), nn.Tanh(), nn.Dropout(0.1), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)
    )


def named(sample: Sample, kind: Any) -> dict[str, float | None]:
    return dict(zip([info.name for info in sample.network.parameters], sample[kind], strict=True))


def true_norms(model: nn.Module, of: Callable[[nn.Parameter], Tensor | None]) -> dict[str, float | None]:
    return {
        name: None if (value := of(parameter)) is None else value.detach().double().norm().item()
        for name, parameter in model.named_parameters()
    }


def close(measured: dict[str, float | None], true: dict[str, float | None]) -> bool:
    assert measured.keys() == true.keys()
    assert [value is None for value in measured.values()] == [value is None for value in true.values()]
    pairs = [(measured[name], true[name]) for name in true if true[name] is not None]
    return all(a == pytest.approx(b, rel=1e-6) for a, b in pairs)


def take(model: nn.Module, optimizer: Any, *inputs: Any, steps: int = 1) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(*inputs).square().sum().backward()
        optimizer.step()
