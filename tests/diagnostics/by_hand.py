"""What norms are held to: those of a model's gradients where its loop has them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from bpkit.diagnostics import Diagnostic, Finding
from bpkit.diagnostics.instruments import (
    AccumulatedNorm,
    Activations,
    Deltas,
    GradientNorm,
    LossScale,
    Units,
)
from bpkit.diagnostics.sample import Sample

Norms = list[float | None]


class Probing(Diagnostic):
    """Keeps every sample; no step is left out, however slow the machine."""

    needs = (GradientNorm, AccumulatedNorm)
    wants = (Deltas, Activations, Units, LossScale)

    def __init__(self) -> None:
        self.samples: list[Sample] = []

    def attach(self, watcher: Any) -> None:
        watcher.schedule.budget = float("inf")

    def observe(self, sample: Sample) -> list[Finding]:
        self.samples.append(sample)
        return []


def network() -> nn.Sequential:
    """Of six numbers, with an activation that writes over a layer's output."""
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.ReLU(inplace=True), nn.Linear(4, 3))


def norms(model: nn.Module, factor: float = 1.0) -> Norms:
    """Of the gradients as they are now, without a loss scale."""
    grads = [each.grad for each in model.parameters()]
    return [None if each is None else each.double().norm().item() / factor for each in grads]


def take(model: nn.Module, optimizer: torch.optim.Optimizer) -> Norms:
    """One step of any model of six numbers; its true norms."""
    optimizer.zero_grad()
    model(torch.randn(8, 6)).square().mean().backward()
    true = norms(model)
    optimizer.step()
    return true


def holds(sample: Sample, used: Norms, accumulated: Norms | None = None, rel: float = 1e-6) -> None:
    """The sample has these norms, at the step and before clipping, which is the same where nothing clips."""
    for kind, true in ((GradientNorm, used), (AccumulatedNorm, accumulated or used)):
        measured = sample[kind]
        assert [each is None for each in measured] == [each is None for each in true]
        known = [each for each in measured if each is not None]
        assert known == pytest.approx([each for each in true if each is not None], rel=rel)
