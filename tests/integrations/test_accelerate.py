"""`bpkit.watch` beside Accelerate, with what it prepares and without."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import mse_loss

pytest.importorskip("accelerate", reason="needs accelerate: pip install 'bpkit[transformers]'")

from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

import bpkit

pytestmark = [pytest.mark.cpu, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(autouse=True)
def _alone():
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


@pytest.mark.parametrize("prepared", [True, False])
@pytest.mark.parametrize(
    ("precision", "accumulate", "clip"), [("no", 1, None), ("no", 2, 0.1), ("bf16", 3, 0.1)]
)
def test_norms_and_losses_are_those_by_hand(
    model, loader, by_hand, probing, precision, accumulate, clip, prepared
):
    accelerator = Accelerator(cpu=True, mixed_precision=precision, gradient_accumulation_steps=accumulate)
    bare, plain = model, torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer, batches = accelerator.prepare(model, plain, loader)
    watched = (model, optimizer) if prepared else (bare, None)
    total = 0.0
    with bpkit.watch(*watched, diagnostics=[probing], every=1) as watcher:
        for x, y in batches:
            with accelerator.accumulate(model):
                loss = mse_loss(model(x).float(), y)
                accelerator.backward(loss)
                total += loss.item() / accumulate
                if clip is not None and accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), clip)
                optimizer.step()
                if accelerator.sync_gradients:
                    watcher.loss(total)
                    total = 0.0
                optimizer.zero_grad()
    hand = by_hand(accumulate=accumulate, clip=clip, bf16=precision == "bf16")
    hand.agrees(probing.samples)
    assert probing.samples[0].network.parameters[0].name == "0.weight"
