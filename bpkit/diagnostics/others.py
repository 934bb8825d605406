"""Whether a loss trains other networks as well, told from its graph."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

NODES = 100_000


def trains_others(loss: Tensor, parameters: Iterable[nn.Parameter]) -> bool:
    """Whether a gradient of `loss` also goes to a parameter that is none of these.

    The graph is still there after its backward, as long as the loss is.
    """
    if loss.grad_fn is None:
        return False
    own = {id(parameter) for parameter in parameters}
    waiting: list[Any] = [loss.grad_fn]
    seen = set(waiting)
    while waiting and len(seen) < NODES:
        node = waiting.pop()
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, nn.Parameter) and id(leaf) not in own:
            return True
        for below, _ in node.next_functions:
            if below is not None and below not in seen:
                seen.add(below)
                waiting.append(below)
    return False
