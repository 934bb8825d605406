"""Activations that a model calls as functions, found on its graph: `torch.relu(self.linear(x))`.

They are no modules, so no hook sees them. What they are, and which module's output they take, follows from
the graph of one forward; from then on that module's output is read as the activation's input.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.autograd.graph import Node

# How the node of each is named, by torch and by bpkit, and the module that does the same.
_ACTIVATIONS = {
    "relu": "ReLU",
    "tanh": "Tanh",
    "sigmoid": "Sigmoid",
    "gelu": "GELU",
    "silu": "SiLU",
    "softsign": "Softsign",
}
# Between a module and its activation these only rearrange.
_SHAPES = (
    "view",
    "reshape",
    "unsafeview",
    "permute",
    "transpose",
    "t",
    "unsqueeze",
    "squeeze",
    "clone",
    "tocopy",
)
NODES = 100_000


def activations(outputs: Iterable[Tensor], ends: Mapping[Node, int]) -> dict[int, str]:
    """Kind of activation by the place of the module whose output it takes, straight or rearranged.

    Args:
        outputs: of the model.
        ends: the node of each module's output, with the module's place.
    """
    found: dict[int, str] = {}
    waiting = [each.grad_fn for each in outputs if each.grad_fn is not None]
    seen: set[Any] = set(waiting)
    while waiting and len(seen) < NODES:
        node = waiting.pop()
        kind = None if node in ends else _ACTIVATIONS.get(_stem(node))
        below = [edge[0] for edge in node.next_functions if edge[0] is not None]
        if kind is not None and below:
            source = below[0]
            while source not in ends and _stem(source) in _SHAPES and source.next_functions[0][0] is not None:
                source = source.next_functions[0][0]
            if source in ends:
                found[ends[source]] = kind
        for each in below:
            if each not in seen:
                seen.add(each)
                waiting.append(each)
    return found


def _stem(node: Node) -> str:
    """`relu` of ReluBackward0, ReLUFunctionBackward and ReLUBackward."""
    return node.name().lower().split("::")[-1].partition("backward")[0].removesuffix("function")
