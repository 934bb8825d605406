"""Recurrence by hand: a module that is called step after step, each time on what it gave the step before.

    h_t = cell(x_t, h_{t-1})        lag l: ‖∂L/∂h_{T-l}‖ over ‖∂L/∂h_T‖

A cell (`RNNCell`, `LSTMCell`, `GRUCell`, one of the user's own), the layer that an own cell has for its
state, or `RNN`, `LSTM` and `GRU` on sequences of one step. Nothing is run again: ∂L/∂h_t comes by in the
backward. It holds what the loss reads off every h_t as well as what comes back from later ones, so that a
loss of the last one shows the decay alone. Each case begins at the last step that has an error: a loss may
be masked over padding.

A layer that is called several times is no recurrence for that: its output has to reach its next input, by a
few nodes of the graph, without a parameter's or a matrix product's doing between: a frozen weight is no node.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bpkit.diagnostics.instruments.contributions import wide
from bpkit.diagnostics.instruments.through_time import by_lag, last_step, log_norm

FEWEST = 3  # calls: two layers that share their weights are called twice
NODES = 48  # of the graph, from an input back to the last output: gates of an own LSTM are about 20
PRODUCT = re.compile(r"(?<!cu)mm|mv|dot|conv|(^|mkldnn)linear|rnn|lstm|gru", re.IGNORECASE)

Rows = Callable[[Tensor], Tensor]


@dataclass
class _Chain:
    """Calls that hang together; of each, log ‖∂L/∂h_t‖ by case once it has come."""

    calls: int = 0
    errors: dict[int, Tensor] = field(default_factory=dict)
    coming: tuple[int, Tensor] | None = None  # a step, and what has come of its error so far

    def hears(self, step: int, rows: Rows) -> Callable[[Tensor], None]:
        def hook(delta: Tensor) -> None:
            if self.calls < FEWEST:
                return  # of nearly every layer: it is called once
            own = rows(wide(delta))
            if self.coming is not None and self.coming[0] == step:
                own = own + self.coming[1]
            else:
                self._note()
            self.coming = step, own

        return hook

    def _note(self) -> None:
        if self.coming is not None:
            step, error = self.coming
            self.errors[step], self.coming = log_norm(error), None

    def by_lag(self) -> tuple[Tensor, Tensor] | None:
        """[T, B], relative to lag 0, and each case's largest lag [B]; -1 for one without an error.

        None where it is no recurrence, or its cases change on the way.
        """
        self._note()
        steps = sorted(self.errors)
        found = [self.errors[step] for step in steps]
        if len(found) < FEWEST or steps[0] + len(steps) - 1 != steps[-1]:
            return None
        if any(each.shape != found[0].shape for each in found):
            return None
        logs = torch.stack(found)
        last = last_step(logs != -torch.inf)
        logs = by_lag(logs, last)
        there = (last >= 0).sum()
        first = (torch.logsumexp(2 * logs[0], 0) - there.to(logs.dtype).log()) / 2
        return logs - torch.where(there > 0, first, 0), last


def rows_of(delta: Tensor) -> Tensor:
    """[B, ·], of an error with the cases first, or of one case's."""
    return delta.reshape(delta.shape[0], -1) if delta.dim() > 1 else delta.reshape(1, -1)


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

    def on_output(
        self, place: int, module: nn.Module, outputs: list[Tensor], rows: Sequence[Rows] = (rows_of,)
    ) -> None:
        """It has run; `rows` make [B, ·] of the errors of the first outputs that carry one, summed."""
        nodes = {each.grad_fn for each in outputs if each.grad_fn is not None}
        if not nodes or next(module.parameters(), None) is None:
            return
        self._outputs[place] = nodes
        chain = self._chains.setdefault(place, [_Chain()])[-1]
        hearing = [each for each in outputs if each.grad_fn is not None]
        for each, own in zip(hearing, rows, strict=False):
            self._listen(each, chain.hears(chain.calls, own))
        chain.calls += 1

    def by_lag(self) -> dict[int, tuple[Tensor, Tensor]]:
        """Of each module that is a recurrence, its longest one; asked when a backward is over."""
        found: dict[int, tuple[Tensor, Tensor]] = {}
        for place, chains in self._chains.items():
            known = [lags for chain in chains if (lags := chain.by_lag()) is not None]
            if known:
                found[place] = max(known, key=lambda lags: len(lags[0]))
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
        if node in seen or node._sequence_nr() < oldest or PRODUCT.search(node.name()):
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
