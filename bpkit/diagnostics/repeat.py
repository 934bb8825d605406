"""A captured call made again beside the training, in its own precision or in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bpkit.core.structure import tensors
from bpkit.diagnostics.aside import generators_kept
from bpkit.diagnostics.capture import Call

Gradients = dict[str, Tensor]
Change = Callable[[Tensor], Tensor]


@dataclass
class Run:
    """Outputs and gradients of one repetition."""

    outputs: tuple[Tensor, ...]
    gradients: Gradients


def repeat(
    call: Call,
    module: nn.Module,
    wide: Wide | None = None,
    *,
    ready: Callable[[], None] | None = None,
    keep: bool = False,
) -> Run:
    """Forward and backward of `module`, a copy of it, on what the call was given.

    Args:
        call: inputs, ∂L/∂output and circumstances.
        module: the call's, or one that takes its place.
        wide: in float64.
        ready: called between forward and backward.
        keep: return the outputs with their graph.
    """
    change: Change = wide or same
    module = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.data = change(parameter.data)
        for each in module.modules():
            for name, buffer in each._buffers.items():
                each._buffers[name] = None if buffer is None else change(buffer)
    leaves = [leaf(each, change) if isinstance(each, Tensor) else each for each in call.leaves]
    # Copies, for a module that writes over what it is given.
    args, kwargs = call.rebuild(iter([each.clone() if isinstance(each, Tensor) else each for each in leaves]))
    wanted = {
        f"input {place}": each
        for place, each in enumerate(leaves)
        if isinstance(each, Tensor) and each.requires_grad
    }
    wanted.update({name: each for name, each in module.named_parameters() if each.requires_grad})
    with ExitStack() as stack:
        stack.enter_context(generators_kept([*call.given, *module.parameters()]))
        torch.set_rng_state(call.generators[0])
        if call.generators[1] is not None:
            torch.cuda.set_rng_state(call.generators[1], call.device)
        stack.enter_context(torch.enable_grad())
        autocast = call.autocast if wide is None else None
        stack.enter_context(torch.autocast(call.device.type, autocast, enabled=autocast is not None))
        made = tensors(module(*args, **kwargs))
    if ready is not None:
        ready()
    pairs = [
        (output, change(call.deltas[place]).to(output.dtype))
        for place, output in enumerate(made)
        if place in call.deltas and output.requires_grad
    ]
    outputs = made if keep else tuple(each.detach() for each in made)
    return Run(outputs, gradients(pairs, wanted, keep=keep))


def precision(call: Call) -> float:
    """Relative distance of two numbers in the lowest precision that the call computes in."""
    floats = [each for each in (*call.given, *call.module.parameters()) if each.dtype.is_floating_point]
    dtypes = {each.dtype for each in floats} | ({call.autocast} if call.autocast is not None else set())
    return max((torch.finfo(dtype).eps for dtype in dtypes), default=torch.finfo(torch.float32).eps)


class Wide:
    """The change to float64; with a generator, to numbers that are off by about `eps` of themselves.

    Towards zero, for there are inputs that may not leave [0, 1].
    """

    def __init__(self, eps: float, noise: torch.Generator | None) -> None:
        self._eps, self._noise = eps, noise

    def __call__(self, tensor: Tensor) -> Tensor:
        if not (tensor.is_floating_point() or tensor.is_complex()):
            return tensor
        wide = tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)
        if self._noise is None:
            return wide
        size = torch.randn(tensor.shape, generator=self._noise, dtype=torch.float64, device="cpu")
        return wide * (1 - self._eps * size.abs().to(tensor.device))


def same(tensor: Tensor) -> Tensor:
    """The change that is none."""
    return tensor


def leaf(tensor: Tensor, change: Change) -> Tensor:
    """A leaf of a graph with what `change` makes of the values, requiring a gradient where they do."""
    return change(tensor.detach()).clone().requires_grad_(tensor.requires_grad)


def gradients(
    pairs: list[tuple[Tensor, Tensor]], wanted: dict[str, Tensor], *, keep: bool = False
) -> Gradients:
    """∂L/∂ each of `wanted`, zero where nothing leads to it."""
    if not pairs or not wanted:
        return {}
    found = torch.autograd.grad(
        [output for output, _ in pairs],
        list(wanted.values()),
        [delta for _, delta in pairs],
        materialize_grads=True,
        retain_graph=keep,
    )
    return {name: each.detach() for name, each in zip(wanted, found, strict=True)}


def near(one: Tensor, other: Tensor, tolerance: float = 1e-3) -> bool:
    """Whether two are the same shape and, relative to the largest element, as near as that."""
    if one.shape != other.shape:
        return False
    gap = (one.detach().double() - other.detach().double()).abs()
    size = other.detach().double().abs()
    return not gap.numel() or bool(gap.amax() <= tolerance * size.amax().clamp(min=1e-30))
