"""Models, right and wrong, that the live audit is tried on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import bpkit
from bpkit.core.finding import Finding
from bpkit.diagnostics import Diagnostic


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru = nn.LSTM(6, 5, 2, dropout=0.2, batch_first=True), nn.GRU(5, 4, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden, (last, _) = self.lstm(x[:, None].expand(-1, 4, -1))
        return self.head(self.gru(hidden)[1][-1]) + last[-1, :, :3]


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.block = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.1, batch_first=True)
        self.attention = nn.MultiheadAttention(6, 2, dropout=0.1, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.table((x.abs() * 7).long() % 11)
        hidden = self.block(tokens)
        mask = torch.ones(6, 6, dtype=torch.bool).triu(1)
        return self.head(
            self.attention(hidden, hidden, hidden, attn_mask=mask, need_weights=False)[0].mean(1)
        )


class Checkpointed(nn.Module):
    reentrant = False

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.SiLU(), nn.Dropout(0.2))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.body, x, use_reentrant=self.reentrant))


class Reentrant(Checkpointed):
    reentrant = True


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)),
        nn.Conv2d(1, 4, 2, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Dropout2d(0.2),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.LayerNorm(8),
        nn.PReLU(),
        nn.utils.parametrizations.weight_norm(nn.Linear(8, 3)),
    )


MODELS: dict[str, Callable[[], nn.Module]] = {
    "convolutional": convolutional,
    "recurrent": Recurrent,
    "attending": Attending,
    "checkpointed": Checkpointed,
    "reentrant": Reentrant,
}


def trained(
    model: nn.Module,
    audit: Diagnostic | None,
    *,
    steps: int = 6,
    dtype: torch.dtype = torch.float32,
    autocast: bool = False,
    scale: float = 1.0,
) -> list[Finding]:
    """Some steps on random data; what was found."""
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(1), dtype=dtype).requires_grad_()
    with bpkit.watch(model, optimizer, diagnostics=[audit] if audit else []) as watcher:
        for _ in range(steps):
            optimizer.zero_grad()
            with torch.autocast("cpu", enabled=autocast):
                loss = model(x).square().mean()
            (scale * loss).backward()
            optimizer.step()
    return watcher.findings


def seeded(make: Callable[[], nn.Module], dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return make().to(dtype)


class WrongWeight(bpkit.Function):
    """A linear map whose weight gradient is 1 % too large."""

    @staticmethod
    def forward(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return input @ weight.T + bias

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        input, weight = ctx.saved_tensors
        return grad_output @ weight, 1.01 * grad_output.T @ input, grad_output.sum(0)


class WrongLinear(bpkit.nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return WrongWeight.call(input, self.weight, self.bias)
