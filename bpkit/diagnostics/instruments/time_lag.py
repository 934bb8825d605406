"""`TimeLag`: how far back in time a recurrent layer's error reaches."""

from __future__ import annotations

from collections.abc import Callable
from math import log

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bpkit.diagnostics.instruments.chains import Chains
from bpkit.diagnostics.instruments.contributions import forward_is_torchs, wide
from bpkit.diagnostics.instruments.figures import Figure, Figures
from bpkit.diagnostics.instruments.instrument import Instrument
from bpkit.diagnostics.instruments.through_time import FUNCTIONS, log_norms
from bpkit.diagnostics.sample import Provenance

STEPS = 128  # of longer sequences the last ones, begun with the state that the whole began with
CASES, ROWS = 4, 128  # of the batch, and of all its steps together: what runs again beside the training
FORGOTTEN = 1e-3  # of what is at lag 0
SMALLEST = 1e-30  # of an error of length 1: below, float32 soon has no numbers


class TimeLag(Instrument):
    """‖∂L_T/∂z_{T-l}‖ over the lag l in `RNN`, `LSTM` and `GRU`, for an error of length 1 in the last output.

    `through_time.py` says what that is. `steps` is the largest lag; `first` and `last` the norms at lag 0 and
    at the largest; `factor` what a step multiplies it by, on the geometric mean; `memory` the lag at which
    a thousandth of the first is left, or the largest. Root mean squares over cases and directions.

    The same of a recurrence by hand, from ∂L/∂h_t over lag 0 (`chains.py`): of cells, of layers that are
    called on what they gave, such as `LSTM` step by step.

    None for packed sequences, and for a class with a forward of its own.
    """

    of = "modules"
    columns = ("steps", "first", "last", "factor", "memory")
    provenance = Provenance("backward", reduced=False)
    integers = True

    def arm(self) -> None:
        self._uses: dict[int, list[_Use]] = {}
        self._figures: dict[int, Tensor] = {}
        self._begun: dict[int, _Use] = {}
        self._single: set[int] = set()  # are running on one step
        self._chains = Chains(self.listen)

    def on_input(self, call: int, place: int, module: nn.Module, inputs: list[Tensor]) -> None:
        self._begun.pop(place, None)
        self._single.discard(place)
        if not isinstance(module, nn.RNNBase):
            self._chains.on_input(place, inputs)
            return
        if module.mode not in FUNCTIONS or place in self._figures:
            return
        if not (all(each.is_floating_point() for each in inputs) and inputs and forward_is_torchs(module)):
            return
        if inputs[0].shape[1 if module.batch_first and inputs[0].dim() == 3 else 0] == 1:
            self._single.add(place)
            self._chains.on_input(place, inputs)
        else:
            self._begun[place] = _Use(module, inputs)

    def on_output(self, call: int, place: int, module: nn.Module, outputs: list[Tensor]) -> None:
        if not isinstance(module, nn.RNNBase):
            self._chains.on_output(place, module, outputs)
        elif place in self._single:
            self._chains.on_output(place, module, outputs[:2], _rows_of_state(module))
        use = self._begun.pop(place, None)
        if use is not None and len(outputs) > 1 and outputs[0].requires_grad:
            self._uses.setdefault(place, []).append(use)
            self.listen(outputs[0], use.hears("output"))
            self.listen(outputs[1], use.hears("state"))

    def on_backward(self) -> None:
        for place, uses in self._uses.items():
            heard = next((use for use in uses if use.errors), None)
            if heard is not None and place not in self._figures:
                self._figures[place] = _figures(*heard.log_norms())
        self._uses = {place: uses for place, uses in self._uses.items() if place not in self._figures}
        for place, (logs, last) in self._chains.by_lag().items():
            self._figures.setdefault(place, _figures(logs[:STEPS], last.clamp(max=STEPS - 1)))

    def read(self, lived: frozenset[int]) -> Figures:
        found: list[Figure] = [self._figures.get(place) for place in range(len(self.subject.modules))]
        self._uses, self._figures, self._begun = {}, {}, {}
        self._chains = Chains(self.listen)
        return found


class _Use:
    """One use of a layer: copies of a few cases' input and first state, and of the errors that come back."""

    def __init__(self, module: nn.RNNBase, inputs: list[Tensor]) -> None:
        self._module = module
        self._batched = inputs[0].dim() == 3
        self._axis = 0 if module.batch_first else 1
        input, *states = (wide(each.detach()) for each in inputs)
        if self._batched:
            steps, count = input.shape[1 - self._axis], input.shape[self._axis]
            some = max(1, min(CASES, count, ROWS // max(1, min(steps, STEPS))))
            self._cases = slice(0, some * (count // some), max(1, count // some))
        self._input = self._sequence(input)
        self._states = [self._state(each) for each in states] or self._zeros()
        self.errors: dict[str, Tensor] = {}

    def hears(self, what: str) -> Callable[[Tensor], None]:
        """A hook for the error of the output, or of the last state."""

        def hook(delta: Tensor) -> None:
            own = self._sequence(wide(delta)) if what == "output" else self._state(wide(delta))
            self.errors[what] = self.errors[what] + own if what in self.errors else own

        return hook

    def log_norms(self) -> tuple[Tensor, Tensor]:
        """By lag, direction and case, and the largest lags."""
        module = self._module
        directions = 2 if module.bidirectional else 1
        size = module.proj_size or module.hidden_size
        steps, cases = self._input.shape[:2]
        error = self.errors.get("output")
        error = self._input.new_zeros(steps, cases, directions * size) if error is None else error.clone()
        state = self.errors.get("state")
        if state is not None:  # of the last layer, the output where each direction ends
            error[-1, :, :size] += state[-directions]
            if directions == 2:
                error[0, :, size:] += state[-1]
        return log_norms(module, self._input[-STEPS:], self._states, error[-STEPS:])

    def _sequence(self, tensor: Tensor) -> Tensor:
        """[T, B, ·], of the cases that are looked at."""
        if not self._batched:
            return tensor[:, None].clone()
        few = tensor[self._cases] if self._axis == 0 else tensor[:, self._cases]
        return few.transpose(0, 1).clone() if self._axis == 0 else few.clone()

    def _state(self, tensor: Tensor) -> Tensor:
        return tensor[:, self._cases].clone() if self._batched else tensor[:, None].clone()

    def _zeros(self) -> list[Tensor]:
        module, cases = self._module, self._input.shape[1]
        count = module.num_layers * (2 if module.bidirectional else 1)
        sizes = [module.proj_size or module.hidden_size]
        sizes += [module.hidden_size] if module.mode == "LSTM" else []
        return [self._input.new_zeros(count, cases, size) for size in sizes]


def _rows_of_state(module: nn.RNNBase) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Of one step's output and of its state, errors of the states of all layers, [B, layers · D · P]."""

    def output(delta: Tensor) -> Tensor:
        rows = delta.reshape(-1, delta.shape[-1])  # its step is an axis of length 1
        return F.pad(rows, ((module.num_layers - 1) * rows.shape[1], 0))

    def state(delta: Tensor) -> Tensor:
        return delta.transpose(0, 1).flatten(1) if delta.dim() == 3 else delta.reshape(1, -1)

    return output, state


def _figures(logs: Tensor, last: Tensor) -> Tensor:
    """What `TimeLag` has in its columns, from log norms [T, D, B] or [T, B] and the largest lags of each."""
    lags = torch.arange(len(logs), device=logs.device)
    last = last.flatten()
    there = lags[:, None] <= last
    logs, count = logs.flatten(1).masked_fill(~there, -torch.inf), there.sum(1)
    profile = (torch.logsumexp(2 * logs, 1) - count.to(logs.dtype).log()) / 2
    profile = torch.where(count > 0, profile, -torch.inf)
    first, largest = profile[0], last.amax().clamp(min=0)
    reached = torch.where(profile > log(SMALLEST), lags, 0).amax()
    factor = ((profile.take(reached) - first) / reached).exp()
    factor = torch.where(reached > 0, factor, torch.where(largest > 0, first * 0, torch.nan))
    memory = torch.where(profile < first + log(FORGOTTEN), lags, largest).amin()
    found = [largest.to(first.dtype), first.exp(), profile.take(largest).exp(), factor]
    return torch.stack([*found, memory.to(first.dtype)])
