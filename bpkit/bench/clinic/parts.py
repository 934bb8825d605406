"""Modules that hold a fault, and unusual ones that are sound."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bpkit.bench.clinic.data import Task
from bpkit.bench.clinic.networks import Build, features


class Apply(nn.Module):
    """A function as a module; in training alone it is `function` from call `since` on, before it `before`."""

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        before: Callable[[Tensor], Tensor] = torch.relu,
        since: int = 1,
    ) -> None:
        super().__init__()
        self.function, self.before, self.since, self.calls = function, before, since, 0

    def forward(self, input: Tensor) -> Tensor:
        self.calls += self.training
        return (self.function if self.calls >= self.since else self.before)(input)


def guarded_root(input: Tensor) -> Tensor:
    """√ of the positive, 0 elsewhere: right in the forward, 0 / 0 = NaN in the backward."""
    positive = input > 0
    return torch.where(positive, (input * positive).sqrt(), 0.0)


def normalised(input: Tensor) -> Tensor:
    """Each case over its own sum: 0 / 0 where nothing fires."""
    fired = torch.relu(input - input.mean(-1, keepdim=True) - 3 * input.std(-1, keepdim=True))
    return fired / fired.sum(-1, keepdim=True)


class Half(nn.Module):
    """A module whose forward and backward run in float16, without a loss scale."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.float16):
            output = self.inner(input)
        return output.float()


class Orphan(nn.Module):
    """A network with an auxiliary branch that its forward forgot."""

    def __init__(self, inner: nn.Module, width: int) -> None:
        super().__init__()
        self.inner = inner
        self.forgotten = nn.Linear(width, width)

    def forward(self, input: Tensor) -> Tensor:
        return self.inner(input)


class Adapted(nn.Module):
    """LoRA: a frozen linear layer plus a learnt product of low rank that begins at 0."""

    def __init__(self, inner: nn.Linear, rank: int) -> None:
        super().__init__()
        self.inner = inner.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, inner.in_features) / inner.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(inner.out_features, rank))

    def forward(self, input: Tensor) -> Tensor:
        return self.inner(input) + F.linear(F.linear(input, self.down), self.up)


class Experts(nn.Module):
    """A mixture of experts: each case goes to the one that its gate rates highest."""

    def __init__(self, task: Task, count: int, width: int) -> None:
        super().__init__()
        self.classes = task.classes
        self.gate = nn.Linear(features(task), count)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(features(task), width), nn.ReLU(), nn.Linear(width, task.classes))
            for _ in range(count)
        )

    def forward(self, input: Tensor) -> Tensor:
        weight, choice = self.gate(input).softmax(-1).max(-1)
        output = input.new_zeros(len(input), self.classes)
        for number, expert in enumerate(self.experts):
            mine = (choice == number).nonzero()[:, 0]
            if len(mine):
                output = output.index_add(0, mine, expert(input[mine]))
        return output * weight[:, None]


class TwoHeads(nn.Module):
    """Class logits, and the image again: two outputs of one trunk."""

    def __init__(self, task: Task, width: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(features(task), width), nn.ReLU())
        self.label, self.image = nn.Linear(width, task.classes), nn.Linear(width, features(task))

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.trunk(input)
        return self.label(hidden), self.image(hidden)


class Sparse(nn.Sequential):
    """Keeps its last hidden activations, for a penalty on their sum."""

    def forward(self, input: Tensor) -> Tensor:
        *body, head = self
        for module in body:
            input = module(input)
        self.penalty = input.abs().mean()
        return head(input)


def wrapped(build: Build, wrap: Callable[[nn.Module], nn.Module]) -> Build:
    """The network of `build` inside something else."""
    return lambda task: wrap(build(task))


def experts(count: int = 6, width: int = 32) -> Build:
    """See `Experts`."""
    return lambda task: Experts(task, count, width)


def two_heads(width: int = 64) -> Build:
    """See `TwoHeads`."""
    return lambda task: TwoHeads(task, width)
