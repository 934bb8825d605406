"""One sample run through torch's module and through bpkit's, on the same values and weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.testing._internal.common_modules import FunctionInput, ModuleInput

from bpkit.core.graph import name
from bpkit.core.structure import flatten, tensors
from bpkit.verification.compare import relative_error
from tests.conformance.entries import Entry

T = TypeVar("T")

# A gradient this much smaller than the largest one is compared to that one: its true value may be zero.
NEGLIGIBLE = 1e-6


@dataclass
class Run:
    """What came of one call: outputs, the inputs' and the parameters' gradients, and the module."""

    module: nn.Module
    outputs: tuple[Tensor, ...]
    gradients: dict[str, Tensor | None]


def build(cls: type[nn.Module], sample: ModuleInput, dtype: torch.dtype | None, training: bool) -> nn.Module:
    """The module with its own initialisation, from one seed."""
    torch.manual_seed(0)
    args = copy.deepcopy((sample.constructor_input.args, sample.constructor_input.kwargs))
    return cls(*args[0], **args[1]).to(dtype).train(training)


class Arguments:
    """The arguments of a forward call, their differentiable tensors laid out anew at will.

    A tensor that is given twice stays one tensor.
    """

    def __init__(self, given: FunctionInput, change: Callable[[Tensor], Tensor] = torch.clone) -> None:
        leaves, rebuild = flatten((given.args, given.kwargs))
        changed: dict[int, Any] = {}
        for leaf in leaves:
            if id(leaf) not in changed:
                changed[id(leaf)] = _fresh(leaf, change)
        self.leaves = {
            f"input {i}": leaf
            for i, leaf in enumerate(changed.values())
            if isinstance(leaf, Tensor) and leaf.requires_grad
        }
        self.args, self.kwargs = rebuild(iter([changed[id(leaf)] for leaf in leaves]))


def _fresh(leaf: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    fresh = change(leaf.detach()) if leaf.is_floating_point() else leaf.detach().clone()
    return fresh.requires_grad_() if leaf.requires_grad else fresh


def spread(tensor: Tensor) -> Tensor:
    """The same values with a gap after each, and the first axis innermost: never contiguous."""
    wide = tensor.new_empty(*tensor.shape[1:], tensor.shape[0], 2) if tensor.dim() else tensor.new_empty(2)
    view = wide[..., 0].movedim(-1, 0) if tensor.dim() else wide[0]
    return view.copy_(tensor)


def call(module: nn.Module, arguments: Arguments) -> tuple[Tensor, ...]:
    """The differentiable outputs first; `forward` alone where that is all there is."""
    torch.manual_seed(1)
    return tensors(module(*arguments.args, **arguments.kwargs))


def run(
    module: nn.Module,
    given: FunctionInput,
    change: Callable[[Tensor], Tensor] = torch.clone,
    change_grad: Callable[[Tensor], Tensor] = torch.clone,
) -> Run:
    """Forward, and backward from seeded output gradients."""
    arguments = Arguments(given, change)
    outputs = call(module, arguments)
    wanted = {**arguments.leaves, **{key: p for key, p in module.named_parameters() if p.requires_grad}}
    roots = [each for each in outputs if each.requires_grad]
    gradients: tuple[Tensor | None, ...] = (None,) * len(wanted)
    if roots and wanted:
        gradients = torch.autograd.grad(
            roots, list(wanted.values()), cotangents(roots, change_grad), allow_unused=True
        )
    detached = tuple(each.detach().clone() for each in outputs)
    return Run(module, detached, dict(zip(wanted, gradients, strict=True)))


def cotangents(outputs: list[Tensor], change: Callable[[Tensor], Tensor] = torch.clone) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [
        change(torch.randn(each.shape, generator=generator, dtype=torch.float64).to(each.dtype))
        for each in outputs
    ]


def thinned(samples: list[T], most: int | None) -> list[T]:
    """At most so many of them, spread over all, the first and the last among them."""
    if most is None or len(samples) <= most:
        return samples
    return [samples[round(i * (len(samples) - 1) / max(1, most - 1))] for i in range(most)]


def pairs(entry: Entry, dtype: torch.dtype, most: int | None = None) -> Iterator[tuple[str, Any, Any, Any]]:
    """`(label, torch's module, bpkit's with its state, forward arguments)` of every sample.

    Or of `most`, spread over all of them.
    """
    for index, (sample, training) in enumerate(thinned(list(entry.inputs(dtype)), most)):
        theirs = build(entry.theirs, sample, dtype, training)
        ours = build(entry.ours, sample, dtype, training)
        if entry.lazy:  # what it was before is no tensor to copy or compare: the first call makes it one
            for each in (theirs, ours):
                call(each, Arguments(sample.forward_input))
        ours.load_state_dict(theirs.state_dict())
        label = f"sample {index} ({sample.desc}, {'train' if training else 'eval'}, {dtype})"
        yield label, theirs, ours, sample.forward_input


def require_same(ours: Run, theirs: Run, rtol: float, label: str) -> None:
    """Outputs, gradients and buffers equal to `rtol`, and None where torch's are None."""
    assert [each.dtype for each in ours.outputs] == [each.dtype for each in theirs.outputs], label
    require_tensors(
        {f"output {i}": each for i, each in enumerate(ours.outputs)},
        {f"output {i}": each for i, each in enumerate(theirs.outputs)},
        rtol,
        label,
    )
    require_tensors(ours.gradients, theirs.gradients, rtol, f"{label}: gradient of")
    require_tensors(dict(ours.module.named_buffers()), dict(theirs.module.named_buffers()), rtol, label)


def require_no_farther(ours: Run, theirs: Run, truth: Run, label: str) -> None:
    """Each output and gradient as near to `truth` as torch's, and gradients None where torch's are."""
    found = zip(
        (*ours.outputs, *ours.gradients.values()),
        (*theirs.outputs, *theirs.gradients.values()),
        (*truth.outputs, *truth.gradients.values()),
        strict=True,
    )
    for mine, twin, true in found:
        assert (mine is None) == (twin is None), label
        if mine is not None and twin is not None and true is not None:
            error, allowed = relative_error(mine, true), relative_error(twin, true)
            assert error <= allowed, f"{label}: off by {error:.1e}, torch's by {allowed:.1e}"


def require_tensors(ours: dict[Any, Any], theirs: dict[Any, Any], rtol: float, label: str) -> None:
    """Tensors by name equal to `rtol` of each one's largest element, and None where torch's are None."""
    assert ours.keys() == theirs.keys(), label
    largest = max(
        (float(t.detach().abs().nan_to_num(0, 0, 0).max()) for t in theirs.values() if _has(t)), default=0.0
    )
    for key, expected in theirs.items():
        actual = ours[key]
        assert (actual is None) == (expected is None), f"{label} {key}: {actual} for {expected}"
        if expected is None:
            continue
        assert actual.shape == expected.shape, f"{label} {key}: {actual.shape} for {expected.shape}"
        error = relative_error(actual.to_dense(), expected.to_dense(), scale=NEGLIGIBLE * largest)
        assert error <= rtol, f"{label} {key}: relative error {error:.1e}, allowed {rtol:.0e}"


def _has(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.numel() > 0 and tensor.layout is torch.strided


def describe(found: list[Any]) -> str:
    return ", ".join(sorted({name(node) for node in found}))
