"""Recurrence by hand: a module that is called step after step, each time on what it gave the step before.

    h_t = cell(x_t, h_{t-1})        lag l: ‖∂L/∂h_{T-l}‖ over ‖∂L/∂h_T‖

A cell (`RNNCell`, `LSTMCell`, `GRUCell`, one of the user's own), or the layer that an own cell has for its
state. Nothing is run again: ∂L/∂h_t comes by in the backward. It holds what the loss reads off every h_t as
well as what comes back from later ones, so that a loss of the last one shows the decay alone.

A layer that is called several times is no recurrence for that: its output has to reach its next input, by a
few nodes of the graph, without a parameter's doing between.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import log
from typing import Any

import torch
from torch import Tensor, nn

from bpkit.diagnostics.instruments.contributions import wide
from bpkit.diagnostics.instruments.through_time import log_norm

FEWEST = 3  # calls: two layers that share their weights are called twice
NODES = 48  # of the graph, from an input back to the last output: gates of an own LSTM are about 20


@dataclass
class _Chain:
    """Calls that hang together; of each, log ‖∂L/∂h_t‖ by case once it has come."""

    calls: int = 0
    errors: dict[int, Tensor] = field(default_factory=dict)

    def hears(self, step: int) -> Callable[[Tensor], None]:
        def hook(delta: Tensor) -> None:
            if self.calls < FEWEST:
                return  # of nearly every layer: it is called once
            rows = wide(delta).reshape(delta.shape[0], -1) if delta.dim() > 1 else wide(delta).reshape(1, -1)
            self.errors[step] = log_norm(rows)

        return hook

    def by_lag(self) -> Tensor | None:
        """[T, B], relative to lag 0; None where it is no recurrence, or its cases change on the way."""
        steps = sorted(self.errors, reverse=True)
        found = [self.errors[step] for step in steps]
        if len(found) < FEWEST or steps[-1] + len(steps) - 1 != steps[0]:
            return None
        if any(each.shape != found[0].shape for each in found):
            return None
        logs = torch.stack(found)
        return logs - (torch.logsumexp(2 * logs[0], 0) - log(logs.shape[1])) / 2


class Chains:
    """Those of the modules of one sampled step."""

    def __init__(self, listen: Callable[[Tensor, Callable[[Tensor], None]], None]) -> None:
        self._listen = listen
        self._chains: dict[int, list[_Chain]] = {}
        self._outputs: dict[int, set[Any]] = {}  # nodes of what a module gave last

    def on_input(self, place: int, inputs: list[Tensor]) -> None:
        """A module is about to run: whether on what it gave before."""
        before = self._outputs.pop(place, None)
        if before is not None and not reaches(inputs, before):
            self._chains[place].append(_Chain())

    def on_output(self, place: int, module: nn.Module, outputs: list[Tensor]) -> None:
        """It has run."""
        nodes = {each.grad_fn for each in outputs if each.grad_fn is not None}
        if not nodes or next(module.parameters(), None) is None:
            return
        self._outputs[place] = nodes
        chain = self._chains.setdefault(place, [_Chain()])[-1]
        self._listen(outputs[0], chain.hears(chain.calls))
        chain.calls += 1

    def by_lag(self) -> dict[int, Tensor]:
        """Of each module that is a recurrence, its longest one; asked when a backward is over."""
        found: dict[int, Tensor] = {}
        for place, chains in self._chains.items():
            known = [logs for chain in chains if (logs := chain.by_lag()) is not None]
            if known:
                found[place] = max(known, key=len)
        return found


def reaches(inputs: list[Tensor], outputs: set[Any]) -> bool:
    """Whether a path leads from one of these tensors back to such a node, with nothing trained on it."""
    waiting = [each.grad_fn for each in inputs if each.grad_fn is not None]
    oldest = min(node._sequence_nr() for node in outputs)
    seen: set[Any] = set()
    while waiting and len(seen) < NODES:
        node = waiting.pop(0)
        if node in outputs:
            return True
        if node in seen or node._sequence_nr() < oldest:
            continue
        seen.add(node)
        below = [each for each, _ in node.next_functions if each is not None]
        if not any(map(_trained, below)):
            waiting += below
    return False


def _trained(node: Any) -> bool:
    """Whether it is a parameter, as it is or transposed or cast."""
    for _ in range(3):
        if hasattr(node, "variable"):
            return True
        below = [each for each, _ in node.next_functions if each is not None]
        if len(below) != 1:
            return False
        node = below[0]
    return False
