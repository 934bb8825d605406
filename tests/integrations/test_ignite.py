from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

pytest.importorskip("ignite", reason="needs ignite: pip install 'bpkit[ignite]'")

from ignite.engine import Engine, Events, create_supervised_evaluator
from ignite.metrics import Loss

from bpkit.integrations.ignite import Watch

pytestmark = [pytest.mark.cpu, pytest.mark.filterwarnings("ignore")]


def engine(
    model: nn.Module, optimizer: torch.optim.Optimizer, accumulate: int = 1, clip: float | None = None,
    bf16: bool = False,
) -> Engine:  # fmt: skip
    def update(engine: Engine, batch: Any) -> float:
        x, y = batch
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            loss = mse_loss(model(x).float(), y)
        (loss / accumulate).backward()
        if engine.state.iteration % accumulate == 0:
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
        return loss.item()

    return Engine(update)


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("bf16", "accumulate", "clip"), [(False, 1, None), (False, 3, None), (False, 2, 0.1), (True, 2, 0.1)]
)
def test_norms_and_losses_are_those_by_hand(model, loader, by_hand, probing, bf16, accumulate, clip):
    optimizer = sgd(model)
    trainer = engine(model, optimizer, accumulate, clip, bf16)
    Watch(diagnostics=[probing], every=1).attach(trainer, model, optimizer)
    trainer.run(loader)
    by_hand(accumulate=accumulate, clip=clip, bf16=bf16).agrees(probing.samples)


def test_a_broken_model_is_found_and_validation_is_given(sigmoids, loader, probing, tmp_path):
    optimizer = sgd(sigmoids)
    trainer = engine(sigmoids, optimizer)
    evaluator = create_supervised_evaluator(sigmoids, {"loss": Loss(mse_loss)})
    watch = (
        Watch(logdir=tmp_path, diagnostics=["vanishing", probing], every=1)
        .attach(trainer, sigmoids, optimizer)
        .attach_validation(evaluator)
    )
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run(loader))
    trainer.run(loader, max_epochs=6)
    assert "vanishing" in [each.kind for each in watch.findings]
    assert any(sample.validation is not None for sample in probing.samples)
    assert list(tmp_path.glob("events*"))


def test_a_healthy_one_is_not(model, loader):
    optimizer = sgd(model)
    trainer = engine(model, optimizer)
    watch = Watch().attach(trainer, model, optimizer)
    trainer.run(loader, max_epochs=6)
    assert watch.summary().startswith("healthy: nothing found in 72 steps")


@pytest.mark.parametrize("handled", [False, True])
def test_an_exception_is_let_out_unless_somebody_handles_it(model, loader, handled):
    before, caught = torch.autograd.backward, []
    optimizer = sgd(model)
    trainer = engine(model, optimizer)
    watch = Watch().attach(trainer, model, optimizer)

    @trainer.on(Events.ITERATION_COMPLETED(once=3))
    def fail() -> None:
        raise ValueError("mine")

    if handled:
        trainer.add_event_handler(Events.EXCEPTION_RAISED, lambda engine, error: caught.append(error))
        trainer.run(loader)
        assert [str(each) for each in caught] == ["mine"]
    else:
        with pytest.raises(ValueError, match="mine"):
            trainer.run(loader)
    assert torch.autograd.backward is before
    assert watch.summary() == "healthy: nothing found in 3 steps"
