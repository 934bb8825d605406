"""No arithmetic for an input that needs no gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from bpkit.verification.case import Case, call, cotangents
from bpkit.verification.check import Check, Skipped
from bpkit.verification.graph import Entry, python_backwards


def run(case: Case) -> str | None:
    """Freeze each input in turn: every kernel of the backward leads to a gradient that somebody needs."""
    case.need_gradient()
    if len(case.differentiable) < 2:
        raise Skipped("one differentiable input: nothing to freeze")
    seen = False
    for frozen in case.differentiable:
        required = [position for position in case.differentiable if position != frozen]
        outputs = call(case.forward, case.fresh(required=required))
        for entry in python_backwards(outputs, cotangents(outputs)):
            seen = True
            wasted = _wasted(entry)
            if wasted:
                raise case.advise(
                    f"with {case.names[frozen]} frozen, {entry.name}'s backward runs "
                    f"{len(wasted)} kernels that lead to no gradient: {', '.join(dict.fromkeys(wasted))}"
                )
    if not seen:
        raise Skipped("no autograd.Function in the graph")
    return None


def _wasted(entry: Entry) -> list[str]:
    """Kernels whose results no needed gradient depends on."""
    flow = _Flow()
    with torch.no_grad(), flow:
        returned: Any = entry.node.apply(*entry.grad_outputs)
    gradients = returned if isinstance(returned, tuple) else (returned,)
    needed = entry.node.needs_input_grad
    live = {
        _memory(gradient)
        for gradient, need in zip(gradients, needed, strict=False)
        if need and isinstance(gradient, Tensor)
    }
    return flow.leading_nowhere(live)


class _Flow(TorchDispatchMode):
    """Which memory every kernel read and wrote."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: list[tuple[str, set[int], set[int]]] = []
        self.held: list[Tensor] = []  # freed memory would come back as somebody else's

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [each for each in tree_iter((args, kwargs)) if isinstance(each, Tensor)]
        made = [each for each in tree_iter(result) if isinstance(each, Tensor)]
        self.held += [*given, *made]
        reads, writes = {_memory(each) for each in given}, {_memory(each) for each in made}
        if not made:  # read by Python: what follows may depend on it
            writes = {0}
        if (given and not writes <= reads) or func._schema.is_mutable:
            self.steps.append((func.name().split(".")[0], reads, writes))
        return result

    def leading_nowhere(self, live: set[int]) -> list[str]:
        """Names of the kernels that nothing in `live` depends on."""
        live = live | {0}
        wasted = []
        for name, reads, writes in reversed(self.steps):
            if writes & live:
                live |= reads
            else:
                wasted.append(name)
        return wasted[::-1]


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


CHECK = Check(
    name="frozen",
    harm="Frozen layers and constant inputs, most of a fine-tuning step, are paid for as if they learned.",
    remedy="Compute each gradient inside `if ctx.needs_input_grad[i]`.",
    run=run,
    subject=Case,
)
