"""`bpkit bench models`: whole models that know nothing of bpkit, converted, against themselves before.

A model of each kind that people train, small and with random weights: the four of `networks.py` in
plain torch.nn, and five of Hugging Face's where `transformers` is installed. Each is measured as it is,
after `bpkit.convert`, and converted inside `bpkit.handwritten()`.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bpkit.bench.measure import interleave, saved_in
from bpkit.bench.networks import ResNet, Tagger, Translator, UNet
from bpkit.swap import Coverage, convert, coverage, handwritten

Batch = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """A model and a batch for it.

    Attributes:
        model: called with the batch by name; gives a loss, or an object with one.
        batch: tensors, the first axis of each the sample's.
    """

    model: nn.Module
    batch: Batch

    def loss(self, model: nn.Module | None = None) -> Tensor:
        """The loss of `model`, or of its own, on the batch."""
        output = (model or self.model)(**self.batch)
        return output if isinstance(output, Tensor) else output.loss


def _resnet(width: int) -> Subject:
    return Subject(ResNet(width), {"images": torch.randn(8, 3, 16, 16), "labels": torch.randint(10, (8,))})


def _unet(width: int) -> Subject:
    batch = {"images": torch.randn(4, 1, 16, 16), "masks": torch.rand(4, 1, 16, 16).round()}
    return Subject(UNet(width), batch)


def _tagger(width: int) -> Subject:
    lengths = torch.tensor([9, 4, 12, 7, 1, 12])
    words, tags = torch.randint(1, 100, (6, 12)), torch.randint(7, (6, 12))
    beyond = torch.arange(12) >= lengths[:, None]
    batch = {"words": words.masked_fill(beyond, 0), "lengths": lengths, "tags": tags.masked_fill(beyond, -1)}
    return Subject(Tagger(width), batch)


def _translator(width: int) -> Subject:
    return Subject(
        Translator(width), {"source": torch.randint(100, (4, 11)), "target": torch.randint(100, (4, 9))}
    )


def _tokens(rows: int = 4, length: int = 16) -> Tensor:
    return torch.randint(1, 100, (rows, length))


def _bert(width: int) -> Subject:
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=100, hidden_size=width, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=4 * width, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    mask = torch.ones(4, 16, dtype=torch.long)
    mask[1, 10:] = 0
    return Subject(
        BertForMaskedLM(config), {"input_ids": _tokens(), "attention_mask": mask, "labels": _tokens()}
    )


def _gpt2(width: int) -> Subject:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=100, n_embd=width, n_layer=2, n_head=4, n_positions=32,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    tokens = _tokens()
    return Subject(GPT2LMHeadModel(config), {"input_ids": tokens, "labels": tokens})


def _llama(width: int) -> Subject:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=100, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    tokens = _tokens()
    return Subject(LlamaForCausalLM(config), {"input_ids": tokens, "labels": tokens})


def _vit(width: int) -> Subject:
    from transformers import ViTConfig, ViTForImageClassification

    config: Any = ViTConfig(
        hidden_size=width, num_hidden_layers=2, num_attention_heads=4, intermediate_size=4 * width,
        image_size=16, patch_size=4, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=10,
    )  # fmt: skip
    batch = {"pixel_values": torch.randn(4, 3, 16, 16), "labels": torch.randint(10, (4,))}
    return Subject(ViTForImageClassification(config), batch)


def _t5(width: int) -> Subject:
    from transformers import T5Config, T5ForConditionalGeneration

    config: Any = T5Config(
        vocab_size=100, d_model=width, d_kv=width // 4, d_ff=4 * width, num_layers=2, num_heads=4,
        dropout_rate=0.0, decoder_start_token_id=0,
    )  # fmt: skip
    return Subject(T5ForConditionalGeneration(config), {"input_ids": _tokens(), "labels": _tokens(length=8)})


MODELS: dict[str, Callable[[int], Subject]] = {
    "ResNet": _resnet,
    "U-Net": _unet,
    "LSTM tagger": _tagger,
    "Transformer": _translator,
}
HUGGING_FACE: dict[str, Callable[[int], Subject]] = {
    "BERT": _bert,
    "GPT-2": _gpt2,
    "Llama": _llama,
    "ViT": _vit,
    "T5": _t5,
}


def available() -> dict[str, Callable[[int], Subject]]:
    """The models that can be built here."""
    return MODELS | (HUGGING_FACE if importlib.util.find_spec("transformers") else {})


def build(name: str, dtype: torch.dtype = torch.float32, width: int = 32) -> Subject:
    """A model by name, from one seed, in `dtype` and in training mode."""
    torch.manual_seed(0)
    subject = available()[name](width)
    batch = {
        key: value.to(dtype) if value.is_floating_point() else value for key, value in subject.batch.items()
    }
    return Subject(subject.model.to(dtype).train(), batch)


@dataclass(frozen=True)
class Row:
    """One model: seconds of a step, bytes kept for backward, and whose nodes its graph is made of."""

    model: str
    torch: float
    converted: float
    handwritten: float
    saved_torch: int
    saved_converted: int
    saved_handwritten: int
    coverage_converted: Coverage
    coverage_handwritten: Coverage


def measure(names: Iterable[str], width: int = 128, seconds: float = 1.0) -> Iterator[Row]:
    """A row for each model, its three ways interleaved."""
    return (_row(name, build(name, width=width), seconds) for name in names)


def _row(name: str, subject: Subject, seconds: float) -> Row:
    swapped = convert(copy.deepcopy(subject.model))

    def forward(model: nn.Module, context: Callable[[], AbstractContextManager[Any]]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with context():
                return subject.loss(model)

        return run

    losses = {
        "torch": forward(subject.model, nullcontext),
        "converted": forward(swapped, nullcontext),
        "handwritten": forward(swapped, handwritten),
    }
    models = {"torch": subject.model, "converted": swapped, "handwritten": swapped}
    times = interleave({way: _step(models[way], losses[way]) for way in losses}, seconds)
    saved = {way: saved_in(models[way], losses[way]) for way in losses}
    return Row(
        model=name,
        torch=times["torch"],
        converted=times["converted"],
        handwritten=times["handwritten"],
        saved_torch=saved["torch"],
        saved_converted=saved["converted"],
        saved_handwritten=saved["handwritten"],
        coverage_converted=coverage(losses["converted"]()),
        coverage_handwritten=coverage(losses["handwritten"]()),
    )


def _step(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], object]:
    parameters = [each for each in model.parameters() if each.requires_grad]
    return lambda: torch.autograd.grad(loss(), parameters, allow_unused=True)
