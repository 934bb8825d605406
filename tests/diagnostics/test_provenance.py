"""Every figure says what it is of, and what cannot be compared, or told, is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler

import bpkit
from bpkit.core.errors import BpkitError
from bpkit.diagnostics import Diagnostic, Finding, Sample
from bpkit.diagnostics.instruments import (
    AccumulatedNorm,
    Deltas,
    GradientNorm,
    Instrument,
    Update,
    WeightNorm,
)
from bpkit.diagnostics.sample import Provenance


class Compares(Diagnostic):
    """Sets errors against norms, whatever they are of."""

    needs = (Deltas, AccumulatedNorm, GradientNorm, Update, WeightNorm)

    def __init__(self) -> None:
        self.samples: list[Sample] = []

    def observe(self, sample: Sample) -> list[Finding]:
        self.samples.append(sample)
        sample.alike(Deltas, GradientNorm)
        return []


def _train(scaler: GradScaler | None, /, *, through: bool = True, **settings: object) -> Compares:
    torch.manual_seed(0)
    model, compares = nn.Linear(4, 3), Compares()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with bpkit.watch(model, optimizer, diagnostics=[compares], **settings) as watcher:  # type: ignore[arg-type]
        for _ in range(3):
            optimizer.zero_grad()
            loss = model(torch.ones(2, 4)).square().mean()
            (loss if scaler is None else scaler.scale(loss)).backward()
            if scaler is None or not through:
                optimizer.step()
            else:
                scaler.step(optimizer)
                scaler.update()
    compares.summary = watcher.summary()  # type: ignore[attr-defined]
    return compares


def test_without_a_scale_and_on_one_rank_all_figures_are_alike() -> None:
    samples = _train(None).samples
    assert len(samples) == 3
    provenances = {kind: reading.provenance for kind, reading in samples[-1].readings.items()}
    assert provenances[Deltas] == Provenance("backward", scaled=False, reduced=True)
    assert provenances[AccumulatedNorm] == Provenance("accumulated")
    assert {each.scaled for each in provenances.values()} == {False}


def test_scaled_errors_are_not_set_against_norms_without_the_scale(caplog: pytest.LogCaptureFixture) -> None:
    compares = _train(GradScaler("cpu", init_scale=256.0))
    assert len(compares.samples) == 1
    assert compares.samples[0].readings[Deltas].provenance.scaled
    assert not compares.samples[0].readings[GradientNorm].provenance.scaled
    why = "Deltas is backward, scaled, of all ranks; GradientNorm is at step, unscaled, of all ranks"
    assert any(why in record.getMessage() for record in caplog.records)
    assert f"not looked at: Compares: figures that cannot be compared: {why}" in compares.summary  # type: ignore[attr-defined]


class OfOneRank(Instrument):
    """A rank's own figure, as it would be among several."""


def test_one_rank_s_own_stands_for_all_where_that_is_said() -> None:
    sample = _train(None).samples[-1]
    readings = dict(sample.readings)
    reading = readings[GradientNorm]
    readings[OfOneRank] = type(reading)(reading.values, Provenance("at step", reduced=False))
    mixed = type(sample)(sample.step, sample.network, readings)
    mixed.alike(OfOneRank, GradientNorm, one_rank=True)
    with pytest.raises(BpkitError, match="OfOneRank is at step, unscaled, of one rank"):
        mixed.alike(OfOneRank, GradientNorm)


def test_gradients_that_may_be_scaled_or_not_are_refused(caplog: pytest.LogCaptureFixture) -> None:
    """A scaler was given, and somebody else takes the step: divided by hand or not, nobody can tell."""
    scaler = GradScaler("cpu", init_scale=256.0)
    compares = _train(scaler, through=False, scaler=scaler)
    assert compares.samples == []
    messages = [record.getMessage() for record in caplog.records]
    assert any(
        "GradientNorm is no longer measured: the gradients may be scaled or not" in each for each in messages
    )
    assert "not looked at: Compares: GradientNorm could not be measured" in compares.summary  # type: ignore[attr-defined]
    assert "nothing looked at in 3 steps" in compares.summary  # type: ignore[attr-defined]


def test_a_watcher_says_what_it_is() -> None:
    model = nn.Linear(2, 2)
    with bpkit.watch(model, torch.optim.SGD(model.parameters(), 0.1)) as watcher:
        assert repr(watcher) == "<Watcher of Linear: step 0, no findings>"
