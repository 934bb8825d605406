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
from torch.nn.modules.lazy import LazyModuleMixin

from bpkit.bench.cases import LARGE, SMALL, Case, case_of
from bpkit.bench.measure import interleave
from bpkit.core.fuse import MIN_NUMEL, compiler_available
from bpkit.core.spec import ModuleSpec

MOST_SLOWER = 40e-6  # seconds more than torch on a small input
MOST_TIMES = 1.5  # times torch's on a large one


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


def measure(
    specs: Iterable[ModuleSpec],
    saved: Callable[[nn.Module, tuple[Any, ...]], int],
    sizes: Iterable[int] = (SMALL, LARGE),
    seconds: float = 1.0,
) -> Iterator[Row]:
    """A row for each spec that has a torch twin, at each size; `saved` counts bytes kept for backward.

    Lazy layers have none: after their first call they are the layer that they become.
    """
    for spec in specs:
        for n in sizes:
            if spec.reference is not None and not issubclass(spec.reference, LazyModuleMixin):
                yield _row(spec, spec.reference, case_of(spec.name), n, saved, seconds)


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
