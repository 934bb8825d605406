"""`bpkit bench models`: whole models that know nothing of bpkit, converted, against themselves before.

A model of each kind that people train, small and with random weights: four networks written out below
in plain torch.nn, and five of Hugging Face's where `transformers` is installed. Each is measured as it is,
after `bpkit.convert`, and converted inside `bpkit.handwritten()`.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from bpkit.bench.measure import interleave, saved_in
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


class ResidualBlock(nn.Module):
    """Two convolutions and a shortcut, with in-place ReLUs and an in-place sum, as in torchvision."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or channels != out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += self.shortcut(x)
        return self.relu(out)


class ResNet(nn.Module):
    """A residual network for small images."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        )
        self.blocks = nn.Sequential(
            ResidualBlock(width, width, 1),
            ResidualBlock(width, 2 * width, 2),
            ResidualBlock(2 * width, 2 * width, 1),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(2 * width, 10)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        features = torch.flatten(self.pool(self.blocks(self.stem(images))), 1)
        return F.cross_entropy(self.head(features), labels)


class UNet(nn.Module):
    """An encoder and decoder with transposed convolutions and concatenated skips."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down1, self.down2 = self._block(1, width), self._block(width, 2 * width)
        self.pool = nn.MaxPool2d(2)
        self.bottom = self._block(2 * width, 4 * width)
        self.up2, self.up1 = (nn.ConvTranspose2d(n * width, n * width // 2, 2, 2) for n in (4, 2))
        self.after2, self.after1 = self._block(4 * width, 2 * width), self._block(2 * width, width)
        self.head = nn.Conv2d(width, 1, 1)
        self.loss = nn.BCEWithLogitsLoss()

    @staticmethod
    def _block(channels: int, out: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(channels, out, 3, padding=1),
            nn.GroupNorm(2, out),
            nn.LeakyReLU(0.1, inplace=True),
            nn.Conv2d(out, out, 3, padding=1),
            nn.InstanceNorm2d(out, affine=True),
            nn.SiLU(),
        )

    def forward(self, images: Tensor, masks: Tensor) -> Tensor:
        first = self.down1(images)
        second = self.down2(self.pool(first))
        third = self.bottom(self.pool(second))
        second = self.after2(torch.cat([self.up2(third), second], dim=1))
        first = self.after1(torch.cat([self.up1(second), first], dim=1))
        return self.loss(self.head(first), masks)


class Tagger(nn.Module):
    """A bidirectional LSTM over packed sentences of several lengths."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, width, padding_idx=0)
        self.lstm = nn.LSTM(width, width, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(2 * width, 7)
        self.loss = nn.CrossEntropyLoss(ignore_index=-1)

    def forward(self, words: Tensor, lengths: Tensor, tags: Tensor) -> Tensor:
        packed = pack_padded_sequence(
            self.embedding(words), lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        hidden, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=words.shape[1])
        return self.loss(self.head(hidden).flatten(0, 1), tags.flatten())


class Translator(nn.Module):
    """torch's own Transformer, from tokens to tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, width)
        self.transformer = nn.Transformer(width, 4, 2, 2, 4 * width, dropout=0.0, batch_first=True)
        self.head = nn.Linear(width, 100)
        self.loss = nn.CrossEntropyLoss()

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(
            target.shape[1] - 1, dtype=self.head.weight.dtype
        )
        hidden = self.transformer(
            self.embedding(source),
            self.embedding(target[:, :-1]),
            tgt_mask=mask.to(source.device),
            tgt_is_causal=True,
        )
        return self.loss(self.head(hidden).flatten(0, 1), target[:, 1:].flatten())


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


def measure(names: list[str], width: int = 128, seconds: float = 1.0) -> Iterator[Row]:
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
