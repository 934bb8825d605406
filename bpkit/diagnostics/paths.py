"""Where errors come back: hooks on tensors and nodes of the training's graph, to which nothing is added."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from bpkit.core.transforms import unseen


class Start:
    """Where a module's part of the graph begins: the gradient edges of its inputs before it ran."""

    def __init__(self, inputs: list[Tensor]) -> None:
        edges = [get_gradient_edge(tensor) for tensor in inputs if tensor.requires_grad]
        self._edges = {(edge.node, edge.output_nr) for edge in edges}
        self.since = torch._C._autograd._get_sequence_nr()

    def watch(self, outputs: list[Tensor], deliver: Callable[[Tensor], None]) -> list[Sum]:
        """Deliver ∂L/∂input of this call: the sum of what the nodes on each input's edge hand over."""
        if not self._edges or not outputs:
            return []
        sums: dict[Any, Sum] = {}
        ends = [get_gradient_edge(output) for output in outputs]
        waiting = list({edge.node for edge in ends if (edge.node, edge.output_nr) not in self._edges})
        seen = set(waiting)
        while waiting:
            node = waiting.pop()
            for place, edge in enumerate(node.next_functions):
                below = edge[0]
                if edge in self._edges:
                    node.register_hook(sums.setdefault(edge, Sum(deliver)).hook(place))
                elif below is not None and below not in seen and below._sequence_nr() >= self.since:
                    seen.add(below)
                    waiting.append(below)
        return list(sums.values())


class Sum:
    """Adds up what several nodes hand to one input, and delivers once all have."""

    def __init__(self, deliver: Callable[[Tensor], None]) -> None:
        self._deliver = deliver
        self._sum: Tensor | None = None
        self._nodes = self._arrived = 0

    def hook(self, place: int) -> Callable[[Any, Any], None]:
        """The hook of one more node, which hands over its gradient number `place`."""
        self._nodes += 1

        def hook(grad_inputs: Any, grad_outputs: Any) -> None:
            delta = grad_inputs[place]
            if delta is not None and not unseen():
                self._sum = delta.detach() if self._sum is None else self._sum + delta.detach()
            self._arrived += 1
            if self._arrived == self._nodes:
                self.flush()

        return hook

    def flush(self) -> None:
        """Deliver what there is."""
        total, self._sum, self._arrived = self._sum, None, 0
        if total is not None:
            self._deliver(total)


def on_error(tensor: Tensor, hook: Callable[[Tensor], None], since: int) -> None:
    """Call `hook` with ∂L/∂tensor, a module's output, whatever is done to it in place afterwards.

    What is written into a view goes round the view's own node: `Linear` of three axes gives a view of its
    product. There the hook goes to the node of what is viewed, if that was made since the module began.
    """
    base = tensor._base
    node = None if base is None else base.grad_fn
    if (
        base is None
        or node is None
        or node._sequence_nr() < since
        or base.numel() != tensor.numel()
        or not (base.is_contiguous() and tensor.is_contiguous())
    ):
        # None comes to an output that nothing used, beside one that something did.
        tensor.register_hook(lambda delta: None if delta is None else hook(delta))
        return
    shape, place = tensor.shape, base.output_nr

    def before(deltas: tuple[Tensor | None, ...]) -> None:
        delta = deltas[place]
        if delta is not None:
            hook(delta.reshape(shape))

    node.register_prehook(before)


def again() -> bool:
    """Whether a backward is running: a forward inside one is a checkpoint's, run again."""
    return torch._C._current_graph_task_id() != -1
