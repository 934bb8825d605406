from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

pytest.importorskip("transformers", reason="needs transformers: pip install 'bpkit[transformers]'")
pytest.importorskip("accelerate", reason="needs accelerate: pip install 'bpkit[transformers]'")

from transformers import Trainer, TrainingArguments

from bpkit.integrations.transformers import Watch

pytestmark = [pytest.mark.cpu, pytest.mark.filterwarnings("ignore")]


class Regression(nn.Module):
    """As the Trainer wants a model: it takes its batch by name, and gives its loss."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        out = self.net(x).float()
        return {"loss": mse_loss(out, y), "logits": out}


class Named(torch.utils.data.Dataset[dict[str, Tensor]]):
    def __init__(self, data: Any) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        x, y = self.data[index]
        return {"x": x, "y": y}


class InOrder(Trainer):
    def _get_train_sampler(self, *args: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)


def trainer(net: nn.Module, data: Any, watch: Watch, where: Any, **settings: Any) -> Trainer:
    given = {
        "max_grad_norm": 0.0, "num_train_epochs": 1, "optim": "sgd", "lr_scheduler_type": "constant",
        "learning_rate": 0.1, "per_device_train_batch_size": 4, "save_strategy": "no", "use_cpu": True,
        "report_to": "none", "disable_tqdm": True, "label_names": ["y"], "logging_strategy": "no", **settings,
    }  # fmt: skip
    arguments = TrainingArguments(output_dir=str(where), **given)
    return InOrder(
        Regression(net), arguments, train_dataset=Named(data), eval_dataset=Named(data), callbacks=[watch]
    )


@pytest.mark.parametrize(
    ("bf16", "accumulate", "clip"), [(False, 1, None), (False, 3, None), (False, 2, 0.1), (True, 2, 0.1)]
)
def test_norms_and_losses_are_those_by_hand(model, data, by_hand, probing, tmp_path, bf16, accumulate, clip):
    watch = Watch(diagnostics=[probing], every=1)
    trainer(
        model, data, watch, tmp_path,
        bf16=bf16, gradient_accumulation_steps=accumulate, max_grad_norm=clip or 0.0,
    ).train()  # fmt: skip
    by_hand(accumulate=accumulate, clip=clip, bf16=bf16).agrees(probing.samples)


def test_a_broken_model_is_found_and_validation_is_given(sigmoids, data, probing, tmp_path):
    watch = Watch(diagnostics=["vanishing", probing], every=1)
    trainer(sigmoids, data, watch, tmp_path, num_train_epochs=6, eval_strategy="epoch").train()
    assert "vanishing" in [each.kind for each in watch.findings]
    assert any(sample.validation is not None for sample in probing.samples)
    assert list((tmp_path / "bpkit").glob("events*"))


def test_a_healthy_one_is_not(model, data, tmp_path):
    watch = Watch()
    trainer(model, data, watch, tmp_path, num_train_epochs=6, eval_strategy="epoch").train()
    assert watch.summary().startswith("healthy: nothing found in 72 steps")


def test_an_exception_leaves_what_was_found(model, data, tmp_path):
    before = torch.autograd.backward
    watch = Watch()
    fit = trainer(model, data, watch, tmp_path)

    def training_step(*args: Any, **kwargs: Any) -> Any:
        if fit.state.global_step == 3:
            raise ValueError("mine")
        return Trainer.training_step(fit, *args, **kwargs)

    fit.training_step = training_step
    with pytest.raises(ValueError, match="mine"):
        fit.train()
    assert watch.summary() == "healthy: nothing found in 3 steps"
    assert watch.session is not None
    watch.session.close()
    assert torch.autograd.backward is before
