"""Custom autograd Functions one by one: what passed through each, and what autograd makes of its forward."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bpkit.core.structure import tensors
from bpkit.diagnostics.repeat import Change, Gradients, Wide, gradients, leaf, near, same


class NoReferenceError(Exception):
    """There is nothing to compare with; says why."""


@dataclass
class Used:
    """One use of a custom Function: what it was called with, and what passed through its backward."""

    function: Any
    args: tuple[Any, ...]
    outputs: tuple[Tensor, ...]
    node: Any
    deltas: tuple[Tensor | None, ...] = ()
    gradients: Gradients = field(default_factory=dict)

    def watch(self) -> None:
        """Note what its node is given in the backward, and what it gives."""
        self.node.register_hook(self._note)

    def _note(self, grad_inputs: Sequence[Tensor | None], grad_outputs: Sequence[Tensor | None]) -> None:
        places = [place for place, each in enumerate(self.args) if isinstance(each, Tensor)]
        self.deltas = tuple(grad_outputs)
        for place, grad in zip(places, grad_inputs, strict=True):
            if self.args[place].requires_grad:
                known = torch.zeros_like(self.args[place]) if grad is None else grad.detach()
                self.gradients[f"argument {place}"] = known

    def by_autograd(self, wide: Wide | None) -> Gradients:
        """The same gradients, derived by autograd from the `forward`.

        Raises:
            NoReferenceError: the `forward` is none that autograd can follow.
        """
        change: Change = wide or same
        args = [leaf(each, change) if isinstance(each, Tensor) else each for each in self.args]
        old = self.function.setup_context is torch.autograd.Function.setup_context
        given = [each.clone() if isinstance(each, Tensor) else each for each in args]
        with torch.enable_grad():
            made = tensors(self.function.forward(*([_Context(len(args))] if old else []), *given))
        if len(made) != len(self.outputs):
            raise NoReferenceError("its forward gives other outputs when it is followed by autograd")
        pairs = [
            (output, change(delta).to(output.dtype))
            for output, delta in zip(made, self.deltas, strict=True)
            if delta is not None and output.requires_grad
        ]
        wanted = {
            f"argument {place}": each
            for place, each in enumerate(args)
            if isinstance(each, Tensor) and each.requires_grad
        }
        if not pairs:
            raise NoReferenceError("autograd cannot follow its forward")
        if wide is None and not all(map(near, made, self.outputs)):
            raise NoReferenceError("its forward gives other outputs when it is followed by autograd")
        return gradients(pairs, wanted)


@contextmanager
def recorded(functions: Iterable[Any]) -> Iterator[list[Used]]:
    """Note each use of these Functions inside, by way of the method that is handed their context."""
    used: list[Used] = []
    held = []
    for function in functions:
        old = function.setup_context is torch.autograd.Function.setup_context
        name = "forward" if old else "setup_context"
        held.append((function, name, function.__dict__.get(name)))
        setattr(function, name, staticmethod(_noting(function, getattr(function, name), old, used)))
    try:
        yield used
    finally:
        for function, name, own in held:
            setattr(function, name, own) if own is not None else delattr(function, name)


def _noting(function: Any, method: Any, old: bool, used: list[Used]) -> Any:
    def note(ctx: Any, args: tuple[Any, ...], output: Any) -> None:
        kept = tuple(
            each.detach().clone().requires_grad_(each.requires_grad) if isinstance(each, Tensor) else each
            for each in args
        )
        outputs = tuple(each.detach().clone() for each in tensors(output))
        used.append(Used(function, kept, outputs, ctx))

    def forward(ctx: Any, *args: Any) -> Any:
        output = method(ctx, *args)
        note(ctx, args, output)
        return output

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        method(ctx, inputs, output)
        note(ctx, inputs, output)

    return forward if old else setup_context


class _Context:
    """What an old-style `forward` is given in place of a context; takes everything, keeps nothing."""

    def __init__(self, arguments: int) -> None:
        self.needs_input_grad = (True,) * arguments

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None
