"""`bpkit bench layers`: each registered layer and loss against its torch twin, forward and backward.

Two sizes, because two things are measured. On a small input the call itself counts: a hand-written
layer may take 40 µs more than torch's. From 2^20 elements on memory counts: it may take 1.5 times
torch's time, fused where that is quicker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bpkit.bench.measure import interleave
from bpkit.core.fuse import MIN_NUMEL, compiler_available
from bpkit.core.spec import ModuleSpec

SMALL, LARGE = 1 << 13, 1 << 20
MOST_SLOWER = 40e-6  # seconds more than torch on a small input
MOST_TIMES = 1.5  # times torch's on a large one


@dataclass(frozen=True)
class Case:
    """How to build a layer and its inputs with about `n` elements."""

    inputs: Callable[[int], tuple[Tensor, ...]]
    args: Callable[[int], tuple[Any, ...]] = lambda n: ()


@dataclass(frozen=True)
class Row:
    """One layer at one size: seconds, and bytes kept for backward beyond parameters.

    `fused` is None where the layer has no formula that is worth fusing at this size.
    """

    layer: str
    shape: tuple[int, ...]
    torch: float
    bpkit: float
    fused: float | None
    saved_torch: int
    saved_bpkit: int

    @property
    def best(self) -> float:
        return self.bpkit if self.fused is None else min(self.bpkit, self.fused)

    @property
    def large(self) -> bool:
        elements = 1
        for size in self.shape:
            elements *= size
        return elements >= LARGE

    @property
    def within(self) -> bool:
        """Whether the row keeps its bar."""
        if self.large:
            return self.best <= MOST_TIMES * self.torch
        return self.best - self.torch <= MOST_SLOWER


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


# What an elementwise layer is measured on serves every layer that is not named here.
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


def measure(
    specs: Iterable[ModuleSpec],
    saved: Callable[[nn.Module, tuple[Any, ...]], int],
    sizes: Iterable[int] = (SMALL, LARGE),
    seconds: float = 1.0,
) -> Iterator[Row]:
    """A row for each spec that has a torch twin, at each size; `saved` counts bytes kept for backward."""
    for spec in specs:
        for n in sizes:
            if spec.reference is not None:
                yield _row(spec, spec.reference, CASES.get(spec.name, DEFAULT), n, saved, seconds)


def _row(
    spec: ModuleSpec,
    reference: type[nn.Module],
    case: Case,
    n: int,
    saved: Callable[[nn.Module, tuple[Any, ...]], int],
    seconds: float,
) -> Row:
    torch.manual_seed(0)
    inputs = case.inputs(n)
    modules = {"torch": reference(*case.args(n)), "bpkit": spec.module(*case.args(n))}
    if n >= MIN_NUMEL and compiler_available():
        modules["fused"] = spec.module(*case.args(n))
        setattr(modules["fused"], "fused", True)  # noqa: B010 - not an attribute that nn.Module declares
    times = interleave({name: _step(module, inputs) for name, module in modules.items()}, seconds)
    floating = next((each for each in inputs if each.is_floating_point()), None)
    shape = (inputs[0].numel(), *case.args(n)[1:]) if floating is None else tuple(floating.shape)
    return Row(
        layer=spec.name,
        shape=shape,
        torch=times["torch"],
        bpkit=times["bpkit"],
        fused=times.get("fused"),
        saved_torch=saved(modules["torch"], inputs),
        saved_bpkit=saved(modules["bpkit"], inputs),
    )


def _step(module: nn.Module, inputs: tuple[Tensor, ...]) -> Callable[[], object]:
    """One forward and backward, to every input and parameter that wants a gradient."""
    wanted = [each for each in (*inputs, *module.parameters()) if each.requires_grad]

    def step() -> object:
        output = module(*inputs)
        first = output[0] if isinstance(output, tuple) else output
        return torch.autograd.grad(first, wanted, torch.ones_like(first))

    return step
