"""The hand-written backwards in a graph, and what each was given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

from bpkit.core.graph import nodes


@dataclass(frozen=True)
class Entry:
    """A node of an `autograd.Function`, and the gradients that reached it."""

    node: Any
    grad_outputs: tuple[Tensor | None, ...]

    @property
    def name(self) -> str:
        """The Function's own name."""
        return type(self.node).__name__.removesuffix("Backward")


def python_backwards(outputs: Sequence[Tensor], grad_outputs: Sequence[Tensor]) -> list[Entry]:
    """Run a backward, and say what gradients each `autograd.Function` in the graph was given.

    The graph is kept, so that each can be called again by itself.
    """
    found: list[Entry] = []

    def remember(node: Any) -> Any:
        def hook(given: tuple[Tensor | None, ...]) -> None:
            found.append(Entry(node, tuple(given)))

        return hook

    handles = [
        node.register_prehook(remember(node))
        for node in nodes(outputs)
        if isinstance(node, BackwardCFunction)
    ]
    roots = [
        (output, grad) for output, grad in zip(outputs, grad_outputs, strict=True) if output.requires_grad
    ]
    try:
        if roots and handles:
            leaves = [node.variable for node in nodes(outputs) if type(node).__name__ == "AccumulateGrad"]
            torch.autograd.grad(
                [output for output, _ in roots],
                leaves,
                [grad for _, grad in roots],
                retain_graph=True,
                allow_unused=True,
            )
    finally:
        for handle in handles:
            handle.remove()
    return found
