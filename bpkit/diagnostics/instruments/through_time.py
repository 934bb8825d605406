"""How much of an error in a recurrent layer's last output arrives so many steps before: hand-written.

    z_t = x_t W_ihᵀ + b_ih      lag l: ‖∂L_T/∂z_{T-l}‖ with ∂L_T/∂output_T = e, of length 1, the only error

The layer runs again on a few cases, off the training's graph, and its own page's backward
(`bpkit.layers.rnn`, `lstm`, `gru`) is called by hand: there δz_t of every step is what each weight's gradient
is a sum of. It is handed over as the input's gradient of a layer that reads z itself, by weights that are
the identity. Of stacked layers z is the first one's, and the error comes down through all of them, without
the dropout between. Of two directions each has its own error, at the end of its own time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bpkit.core.function import Function
from bpkit.layers.gru import GRUFunction
from bpkit.layers.lstm import LSTMFunction
from bpkit.layers.rnn import ReLURNNFunction, TanhRNNFunction

FUNCTIONS: Mapping[str, type[Function]] = {
    "RNN_TANH": TanhRNNFunction,
    "RNN_RELU": ReLURNNFunction,
    "LSTM": LSTMFunction,
    "GRU": GRUFunction,
}


def log_norms(
    module: nn.RNNBase, input: Tensor, states: Sequence[Tensor], error: Tensor
) -> tuple[Tensor, Tensor]:
    """Logarithm of ‖∂L_T/∂z‖ by lag, direction and case, [T, D, B], and the largest lag there is, [D, B].

    Args:
        module: RNN, LSTM or GRU.
        input: [T, B, I].
        states: before the first step, [layers · D, B, ·] each.
        error: ∂L/∂output [T, B, D · P], of which each case's last that is not zero is e.
    """
    directions = 2 if module.bidirectional else 1
    stack = _Stack(module, input, states)
    found, lags = [], []
    for direction, own in enumerate(error.chunk(directions, -1)):
        own = _oriented(own, direction)
        last, injected = _last(own)
        delta_z = stack.backward(_oriented(injected, direction), direction)
        found.append(by_lag(log_norm(_oriented(delta_z, direction)), last))
        lags.append(last)
    return torch.stack(found, 1), torch.stack(lags)


class _Stack:
    """All layers run forward once; then, for each error, backward."""

    def __init__(self, module: nn.RNNBase, input: Tensor, states: Sequence[Tensor]) -> None:
        self._directions = 2 if module.bidirectional else 1
        self._layers: list[list[_Run]] = []
        sequence = input
        for layer in range(module.num_layers):
            runs = []
            for direction in range(self._directions):
                place = layer * self._directions + direction
                own = [state[place][None] for state in states]
                weights = _weights(module, place, input.dtype)
                runs.append(_Run(FUNCTIONS[module.mode], _oriented(sequence, direction), own, weights))
            outputs = [_oriented(run.output, direction) for direction, run in enumerate(runs)]
            sequence = torch.cat(outputs, -1)
            self._layers.append(runs)

    def backward(self, error: Tensor, direction: int) -> Tensor:
        """∂L/∂z of the first layer in a direction, given ∂L/∂output of the last layer in the same."""
        errors: list[Tensor | None] = [None] * self._directions
        errors[direction] = error
        for runs in self._layers[:0:-1]:
            parts = [
                _oriented(run.backward(_oriented(each, which)), which)
                for which, (run, each) in enumerate(zip(runs, errors, strict=True))
                if each is not None
            ]
            errors = list(torch.stack(parts).sum(0).chunk(self._directions, -1))
        below = errors[direction]
        assert below is not None
        delta = self._layers[0][direction].reading_z().backward(_oriented(below, direction))
        return _oriented(delta, direction)


class _Run:
    """One direction of one layer, in its own order of time."""

    def __init__(
        self,
        function: type[Function],
        input: Tensor,
        states: list[Tensor],
        weights: tuple[Tensor | None, ...],
        output: Tensor | None = None,
    ) -> None:
        self._function, self._states, self._weights, self._input = function, states, weights, input
        self.output: Tensor = (
            function.forward(input, *states, None, *weights)[0] if output is None else output
        )

    def reading_z(self) -> _Run:
        """The same with z for its input."""
        w_ih, w_hh, b_ih, b_hh, w_hr = self._weights
        assert w_ih is not None
        z = F.linear(self._input, w_ih, b_ih)
        identity = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
        nothing = None if b_ih is None else torch.zeros_like(b_ih)
        weights = (identity, w_hh, nothing, b_hh, w_hr)
        return _Run(self._function, z, self._states, weights, self.output)

    def backward(self, error: Tensor) -> Tensor:
        """∂L/∂input."""
        inputs = (self._input, *self._states, None, *self._weights)
        context = _Context()
        context.needs_input_grad = (True, *[False] * (len(inputs) - 1))
        self._function.setup_context(context, inputs, (self.output,))
        none = [torch.zeros_like(state) for state in self._states]
        return self._function.backward(context, error, *none)[0]


class _Context:
    """In the place of autograd's, for a backward that is called by hand."""

    needs_input_grad: tuple[bool, ...]
    saved_tensors: tuple[Any, ...]

    def save_for_backward(self, *tensors: Any) -> None:
        self.saved_tensors = tensors


def _weights(module: nn.RNNBase, place: int, dtype: torch.dtype) -> tuple[Tensor | None, ...]:
    """w_ih, w_hh, b_ih, b_hh, w_hr of a layer and direction."""
    w_ih, w_hh, *others = (getattr(module, name).detach().to(dtype) for name in module._all_weights[place])
    b_ih, b_hh = others[:2] if module.bias else (None, None)
    return w_ih, w_hh, b_ih, b_hh, others[-1] if module.proj_size else None


def _oriented(sequence: Tensor, direction: int) -> Tensor:
    """From time's order to that of a direction, or back."""
    return sequence.flip(0) if direction else sequence


def _last(error: Tensor) -> tuple[Tensor, Tensor]:
    """Of each case the last step that has an error, -1 for none, and that error alone, at length 1."""
    steps = torch.arange(error.shape[0], device=error.device)[:, None]
    last = last_step((error != 0).any(-1))
    alone = error * (steps == last)[..., None]
    largest = alone.abs().amax((0, 2), keepdim=True).clamp(min=torch.finfo(error.dtype).tiny)
    alone = alone / largest
    return last, alone / torch.linalg.vector_norm(alone, dim=(0, 2), keepdim=True).clamp(min=0.5)


def last_step(there: Tensor) -> Tensor:
    """Of each case the last step at which `there`, [T, B], holds; -1 for none."""
    steps = torch.arange(len(there), device=there.device)[:, None]
    return torch.where(there, steps, -1).amax(0)


def log_norm(delta: Tensor) -> Tensor:
    """Log ‖δ‖ over features, whose squares may be smaller than any number."""
    largest = delta.abs().amax(-1, keepdim=True)
    unit = delta / torch.where(largest > 0, largest, 1)
    return torch.linalg.vector_norm(unit, dim=-1).log() + largest[..., 0].log()


def by_lag(logs: Tensor, last: Tensor) -> Tensor:
    """[T, B] by time to [T, B] by how long before `last` it is; -inf before the first step."""
    steps = torch.arange(len(logs), device=logs.device)[:, None]
    at = last[None] - steps
    return logs.gather(0, at.clamp(min=0)).masked_fill(at < 0, -torch.inf)
