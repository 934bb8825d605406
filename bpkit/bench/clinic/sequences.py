"""Networks for sequences: recurrent ones, transformers, a model of words."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from bpkit.bench.clinic.data import WORDS, Task
from bpkit.bench.clinic.networks import Build


def tokens(task: Task) -> bool:
    """Whether the inputs are codes to look up, not figures."""
    return not task.inputs.is_floating_point()


class Recurrent(nn.Module):
    """RNN, LSTM or GRU over rows or characters, with an answer at the end or at every step."""

    def __init__(self, task: Task, kind: type[nn.RNNBase], width: int, layers: int, **options: str) -> None:
        super().__init__()
        self.every = task.targets.ndim > 1
        self.embedding = nn.Embedding(task.classes, width) if tokens(task) else nn.Identity()
        size = width if tokens(task) else task.inputs.shape[-1]
        self.recurrent = kind(size, width, layers, batch_first=True, **options)  # type: ignore[arg-type]
        self.head = nn.Linear(width, task.classes)

    def forward(self, input: Tensor) -> Tensor:
        output, _ = self.recurrent(self.embedding(input))
        return self.head(output if self.every else output[:, -1])


def recurrent(
    kind: type[nn.RNNBase] = nn.LSTM,
    width: int = 48,
    layers: int = 1,
    *,
    gain: float | None = None,
    orthogonal: bool = False,
    **options: str,
) -> Build:
    """`gain`: recurrent weights of spread gain / √width."""

    def build(task: Task) -> nn.Module:
        model = Recurrent(task, kind, width, layers, **options)
        for name, weight in model.recurrent.named_parameters():
            if gain is not None and "weight_hh" in name:
                nn.init.normal_(weight, std=gain / math.sqrt(width))
            elif orthogonal and "weight_hh" in name:
                nn.init.orthogonal_(weight)
        return model

    return build


class Transformer(nn.Module):
    """An encoder over rows, frames or characters; causal where it answers at every step."""

    def __init__(
        self, task: Task, layers: int, width: int, norm_first: bool, tied: bool, dropout: float
    ) -> None:
        super().__init__()
        self.every = task.targets.ndim > 1
        self.embedding: nn.Module = (
            nn.Embedding(task.classes, width) if tokens(task) else nn.Linear(task.inputs.shape[-1], width)
        )
        self.position = nn.Parameter(0.1 * torch.randn(task.inputs.shape[1], width))
        layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout, batch_first=True, norm_first=norm_first
        )
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        for each in self.encoder.layers:  # torch copies the first layer: without this all begin alike
            for weight in each.parameters():
                if weight.ndim > 1:
                    nn.init.xavier_uniform_(weight)
        self.norm = nn.LayerNorm(width) if norm_first else nn.Identity()
        self.head = nn.Linear(width, task.classes)
        if tied:
            nn.init.normal_(self.head.weight, std=width**-0.5)
            self.embedding.weight = self.head.weight
        length = task.inputs.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length) if self.every else None
        self.register_buffer("mask", mask)

    def forward(self, input: Tensor) -> Tensor:
        hidden = self.encoder(self.embedding(input) + self.position, self.mask, is_causal=self.every)
        hidden = self.norm(hidden)
        return self.head(hidden if self.every else hidden.mean(1))


def transformer(
    layers: int = 2,
    width: int = 32,
    *,
    norm_first: bool = True,
    tied: bool = False,
    dropout: float = 0.0,
) -> Build:
    """See `Transformer`."""
    return lambda task: Transformer(task, layers, width, norm_first, tied, dropout)


def words(width: int = 24, hidden: int = 64) -> Build:
    """Bengio's model of the next word: embeddings side by side, one hidden layer. Most words are rare."""
    return lambda task: nn.Sequential(
        nn.Embedding(task.classes, width),
        nn.Flatten(),
        nn.Linear(WORDS * width, hidden),
        nn.ReLU(),
        nn.Linear(hidden, task.classes),
    )
