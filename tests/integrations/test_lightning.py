from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

pytest.importorskip("lightning", reason="needs lightning: pip install 'bpkit[lightning]'")

import lightning.pytorch as pl

from bpkit.integrations.lightning import Watch

pytestmark = [pytest.mark.cpu, pytest.mark.filterwarnings("ignore")]


class Module(pl.LightningModule):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: Any, index: int) -> Any:
        x, y = batch
        return mse_loss(self.net(x).float(), y)

    def validation_step(self, batch: Any, index: int) -> None:
        x, y = batch
        self.log("val_loss", mse_loss(self.net(x).float(), y))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(watch: Watch, where: Any, **settings: Any) -> pl.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    given = {"accelerator": "cpu", "logger": False, "max_epochs": 1, **settings}
    return pl.Trainer(default_root_dir=where, callbacks=[watch], **quiet, **given)


@pytest.mark.parametrize(
    ("precision", "accumulate", "clip"),
    [("32-true", 1, None), ("32-true", 3, None), ("32-true", 2, 0.1), ("bf16-mixed", 2, 0.1)],
)
def test_norms_and_losses_are_those_by_hand(
    model, loader, by_hand, probing, tmp_path, precision, accumulate, clip
):
    fit = trainer(
        Watch(diagnostics=[probing], every=1),
        tmp_path,
        precision=precision,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=clip,
    )
    fit.fit(Module(model), loader)
    hand = by_hand(accumulate=accumulate, clip=clip, bf16=precision == "bf16-mixed")
    hand.agrees(probing.samples)
    assert probing.samples[0].network.parameters[0].name == "net.0.weight"


def test_a_broken_model_is_found_and_validation_is_given(sigmoids, loader, probing, tmp_path):
    watch = Watch(diagnostics=["vanishing", probing], every=1)
    trainer(watch, tmp_path, max_epochs=6).fit(Module(sigmoids), loader, loader)
    assert "vanishing" in [each.kind for each in watch.findings]
    assert watch.summary().startswith("critical: vanishing")
    assert any(sample.validation is not None for sample in probing.samples)
    assert list(tmp_path.glob("events*"))


def test_a_healthy_one_is_not(model, loader, tmp_path):
    watch = Watch()
    trainer(watch, tmp_path, max_epochs=6).fit(Module(model), loader, loader)
    assert watch.summary().startswith("healthy: nothing found in 72 steps")


class Gan(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.critic = nn.Linear(2, 4), nn.Linear(4, 1)

    def training_step(self, batch: Any, index: int) -> None:
        first, second = self.optimizers()
        for optimizer, loss in ((first, self.critic(self.generator(batch[0][:, :2])).mean()),
                                (second, self.critic(batch[0]).square().mean())):  # fmt: skip
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(self.generator.parameters()), torch.optim.Adam(self.critic.parameters())]


def test_each_of_several_optimizers_has_its_part(loader, tmp_path):
    watch = Watch()
    trainer(watch, tmp_path).fit(Gan(), loader)
    assert watch.session is not None
    assert {name: each.step for name, each in watch.session.watchers.items()} == {
        "generator": 12,
        "critic": 12,
    }
    assert watch.summary().count("healthy: nothing found in 12 steps") == 2


class Failing(Module):
    def training_step(self, batch: Any, index: int) -> Any:
        if index == 3:
            raise ValueError("mine")
        return super().training_step(batch, index)


def test_an_exception_finishes_the_logs(model, loader, tmp_path):
    before = torch.autograd.backward
    watch = Watch(logdir=tmp_path / "logs")
    with pytest.raises(ValueError, match="mine"):
        trainer(watch, tmp_path).fit(Failing(model), loader)
    assert torch.autograd.backward is before
    assert watch.summary() == "healthy: nothing found in 3 steps"
    assert list((tmp_path / "logs").glob("events*"))


class Size(nn.Module):
    """|x| by a root, whose slope at 0 is infinite."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sqrt(x.square())


class Blank(Module):
    """One of its batches is all 0."""

    batches = 0

    def training_step(self, batch: Any, index: int) -> Any:
        self.batches += 1
        x, y = batch
        return super().training_step((x * (self.batches != 29), y), index)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_producer_between_samples_is_named_in_its_step(loader, tmp_path, accumulate):
    """Lightning runs forward and backward inside the optimizer's step, and never calls the module itself."""
    watch = Watch(diagnostics=["nonfinite"], every=100)
    x, y = next(iter(loader))
    net = nn.Sequential(
        nn.Linear(x.shape[-1], 8, bias=False), nn.Tanh(), Size(), nn.Linear(8, 8), nn.Linear(8, y.shape[-1])
    )
    trainer(watch, tmp_path, max_epochs=4, accumulate_grad_batches=accumulate).fit(Blank(net), loader)
    (finding,) = watch.findings
    assert (finding.step, finding.layers) == (-(-29 // accumulate), ("net.2",)), finding
    assert "in its backward" in finding.advice
