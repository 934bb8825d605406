"""What `bpkit bench layers` measures each layer on: inputs of about n elements, and how it is built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SMALL, LARGE = 1 << 13, 1 << 20


@dataclass(frozen=True)
class Case:
    """How to build a layer and its inputs with about `n` elements."""

    inputs: Callable[[int], tuple[Tensor, ...]]
    args: Callable[[int], tuple[Any, ...]] = lambda n: ()


def _floats(*shape: int) -> Tensor:
    return torch.randn(*shape, requires_grad=True)


def _matrix(n: int) -> tuple[Tensor, ...]:
    return (_floats(n // _width(n), _width(n)),)


def _width(n: int) -> int:
    return 128 if n < LARGE else 1024


def _images(n: int) -> tuple[Tensor, ...]:
    return (_floats(n // (32 * 16 * 16), 32, 16, 16) if n < LARGE else _floats(n // (1 << 17), 32, 64, 64),)


def _sequences(n: int) -> tuple[Tensor, ...]:
    return (_floats(16, n // (16 * 32), 32) if n < LARGE else _floats(64, n // (64 * 256), 256),)


def _probabilities(n: int) -> tuple[Tensor, ...]:
    (logits,) = _matrix(n)
    return logits.detach().sigmoid().requires_grad_(), torch.rand(logits.shape)


def _classes(n: int) -> tuple[Tensor, ...]:
    (logits,) = _matrix(n)
    return logits, torch.randint(logits.shape[1], (len(logits),))


def _pair(n: int) -> tuple[Tensor, ...]:
    (predicted,) = _matrix(n)
    return predicted, torch.rand(predicted.shape)


def _recurrent(n: int) -> tuple[int, int]:
    return (32, 64) if n < LARGE else (256, 256)


def _signals(n: int) -> tuple[Tensor, ...]:
    return (_floats(n // (32 * 64), 32, 64) if n < LARGE else _floats(n // (1 << 15), 32, 1024),)


def _volumes(n: int) -> tuple[Tensor, ...]:
    return (_floats(n // (8 * 8**3), 8, 8, 8, 8) if n < LARGE else _floats(n // (1 << 17), 32, 16, 16, 16),)


# By the number of axes in its name; what an elementwise layer is measured on serves all the others.
BY_AXES = {"1d": Case(_signals), "2d": Case(_images), "3d": Case(_volumes)}
DEFAULT = Case(_matrix)
CASES: dict[str, Case] = {
    "Linear": Case(_matrix, lambda n: (_width(n), _width(n))),
    "Conv2d": Case(_images, lambda n: (32, 32, 3, 1, 1)),
    "MaxPool2d": Case(_images, lambda n: (2,)),
    "AvgPool2d": Case(_images, lambda n: (2,)),
    "BatchNorm1d": Case(_matrix, lambda n: (_width(n),)),
    "BatchNorm2d": Case(_images, lambda n: (32,)),
    "LayerNorm": Case(_matrix, lambda n: (_width(n),)),
    "Embedding": Case(lambda n: (torch.randint(1000, (n // 64,)),), lambda n: (1000, 64)),
    "Softmax": Case(_matrix, lambda n: (-1,)),
    "LogSoftmax": Case(_matrix, lambda n: (-1,)),
    "RNN": Case(_sequences, _recurrent),
    "LSTM": Case(_sequences, _recurrent),
    "mse": Case(_pair),
    "l1": Case(_pair),
    "cross_entropy": Case(_classes),
    "bce": Case(_probabilities),
    "bce_with_logits": Case(_pair),
}


def case_of(name: str) -> Case:
    """The case of a layer by the name of its spec."""
    return CASES.get(name) or BY_AXES.get(name[-2:], DEFAULT)
