"""Networks for vectors and images. Each function gives a builder: the task says how wide its ends are."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bpkit.bench.clinic.data import Task

Build = Callable[[Task], nn.Module]
Change = Callable[[Any], object]  # of a network whose class the row knows
HE = math.sqrt(2)


def features(task: Task) -> int:
    """Length of one input as a vector."""
    return task.inputs[0].numel()


def initialise(module: nn.Module, gain: float) -> None:
    """Weights of spread gain / √(fan in), biases 0, in every linear and convolutional layer."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.normal_(layer.weight, std=gain / math.sqrt(layer.weight[0].numel()))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def mlp(
    depth: int = 3,
    width: int = 64,
    activation: Callable[[], nn.Module] = nn.ReLU,
    *,
    gain: float | None = HE,
    norm: Callable[[int], nn.Module] | None = None,
    dropout: float = 0.0,
) -> Build:
    """`depth` hidden layers; `gain` None leaves torch's own initialisation."""

    def build(task: Task) -> nn.Module:
        layers: list[nn.Module] = []
        for number in range(depth):
            layers.append(nn.Linear(width if number else features(task), width))
            layers += [norm(width)] if norm else []
            layers.append(activation())
            layers += [nn.Dropout(dropout)] if dropout else []
        model = nn.Sequential(*layers, nn.Linear(width if depth else features(task), task.classes))
        if gain is not None:
            initialise(model, gain)
        return model

    return build


def cnn(
    channels: int = 8,
    depth: int = 3,
    *,
    norm: Callable[[int], nn.Module] | None = None,
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> Build:
    """Convolutions with a max pool after the first, global averages at the end."""

    def build(task: Task) -> nn.Module:
        layers: list[nn.Module] = []
        for number in range(depth):
            stride = 2 if number == 0 and task.inputs.shape[-1] > 16 else 1
            layers.append(nn.Conv2d(channels if number else 1, channels, 3, stride, 1))
            layers += [norm(channels)] if norm else []
            layers += [activation(), *([nn.MaxPool2d(2)] if number == 0 else [])]
        side = -(-task.inputs.shape[-1] // (4 if task.inputs.shape[-1] > 16 else 2))
        model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * side * side, task.classes))
        initialise(model, HE)
        return model

    return build


class Block(nn.Module):
    """A pre-activation residual block of two convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        hidden = self.conv1(torch.relu(self.norm1(input)))
        return input + self.conv2(torch.relu(self.norm2(hidden)))


def resnet(channels: int = 12, blocks: int = 3) -> Build:
    """A small pre-activation ResNet."""

    def build(task: Task) -> nn.Module:
        stride = 4 if task.inputs.shape[-1] > 16 else 1
        return nn.Sequential(
            nn.Conv2d(1, channels, 3, stride, 1),
            *(Block(channels) for _ in range(blocks)),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(4 * channels, task.classes),
        )

    return build


class Residual(nn.Module):
    """Fully connected residual blocks.

    Args:
        task: says how wide the ends are.
        blocks: how many.
        width: of the stream.
        norm: whether each branch begins with LayerNorm.
        gain: of the branches' weights, see `initialise`; None leaves torch's own.
        rezero: branches are scaled by a learnt factor that begins at 0.
    """

    def __init__(
        self, task: Task, blocks: int, width: int, norm: bool, gain: float | None, rezero: bool
    ) -> None:
        super().__init__()
        self.stem = nn.Linear(features(task), width)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width) if norm else nn.Identity(),
                nn.Linear(width, width),
                nn.ReLU(),
                nn.Linear(width, width),
            )
            for _ in range(blocks)
        )
        self.factors = nn.Parameter(torch.zeros(blocks)) if rezero else None
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.head = nn.Linear(width, task.classes)
        if gain is not None:
            initialise(self.blocks, gain)

    def forward(self, input: Tensor) -> Tensor:
        stream = self.stem(input)
        for number, block in enumerate(self.blocks):
            branch = block(stream)
            stream = stream + (branch if self.factors is None else self.factors[number] * branch)
        return self.head(self.norm(stream))


def residual(
    blocks: int = 12, width: int = 48, *, norm: bool = True, gain: float | None = None, rezero: bool = False
) -> Build:
    """See `Residual`."""
    return lambda task: Residual(task, blocks, width, norm, gain, rezero)


def autoencoder(width: int = 64, code: int = 12) -> Build:
    """To a code of `code` figures and back."""

    def build(task: Task) -> nn.Module:
        return nn.Sequential(
            nn.Linear(features(task), width),
            nn.ReLU(),
            nn.Linear(width, code),
            nn.Linear(code, width),
            nn.ReLU(),
            nn.Linear(width, task.classes),
            nn.Sigmoid(),
        )

    return build


def changed(build: Build, change: Change) -> Build:
    """The network of `build`, changed in place right after it was built."""

    def changed_build(task: Task) -> nn.Module:
        model = build(task)
        with torch.no_grad():
            change(model)
        return model

    return changed_build


def inserted(build: Build, at: int, *modules: Callable[[], nn.Module]) -> Build:
    """The sequential network of `build` with further modules from place `at` on."""

    def inserted_build(task: Task) -> nn.Module:
        layers = list(build(task).children())
        return nn.Sequential(*layers[:at], *(module() for module in modules), *layers[at:])

    return inserted_build
