"""`Activations`: how a module's outputs are distributed, of a few elements each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import nan, sqrt

import torch
from torch import Tensor, nn

from bpkit.diagnostics.instruments.figures import STACKED, Batch, Value, few
from bpkit.diagnostics.instruments.instrument import Instrument
from bpkit.diagnostics.instruments.last import Last
from bpkit.diagnostics.sample import Provenance

ELEMENTS = 1 << 13  # of one activation that its moments are taken over: 1.1 % of their size
HELD = 1 << 24  # elements that wait at once: 64 MiB of float32; of large models fewer of each
CALLS = 32  # of one module in one forward that are looked at: one that runs a step in time runs often

# Where an activation's slope is a twentieth of its steepest or less, by the size of its output.
_SATURATED: dict[str, tuple[float, float]] = {
    "Sigmoid": (0.0127, 0.9873),  #     y (1 - y) = 0.05 / 4
    "Tanh": (-0.9747, 0.9747),  #       1 - y² = 0.05
    "Softsign": (-0.7764, 0.7764),  #   (1 - |y|)² = 0.05
    "Hardsigmoid": (0.0, 1.0),
    "Hardtanh": (-1.0, 1.0),
}

# The same by the size of the input, for those that are called as functions.
_INPUTS: dict[str, tuple[float, float]] = {
    "Sigmoid": (-4.357, 4.357),
    "Tanh": (-2.1785, 2.1785),
    "Softsign": (-3.4721, 3.4721),
}


class Activations(Instrument):
    """The first output of each module: mean, standard deviation, kurtosis, share of zeros and of saturation.

    Moments of at most 8,192 elements, evenly spread; means over the calls of a module, of which 32 in a
    forward are looked at. `saturated` is the share of outputs whose slope is a twentieth of the activation's
    steepest or less, NaN for a module that is no bounded activation. `largest` is the greatest size; `input`
    the root mean square of the first input, NaN without one. Where the output goes on into an activation that
    is called as a function, `zeros` and `saturated` are of that.
    """

    of = "modules"
    columns = ("mean", "std", "kurtosis", "zeros", "saturated", "largest", "input")
    provenance = Provenance("forward", reduced=False)

    def arm(self) -> None:
        self._kept = _Kept(min(ELEMENTS, max(HELD // max(1, len(self.subject.modules)), 512)))
        self._last: Last[int] = Last()
        self._inputs: dict[tuple[int, int], int] = {}
        self._calls: Counter[tuple[int, int]] = Counter()
        self._outputs: list[tuple[int, int, int, int | None]] = []  # call, place, what is kept of both ends

    def on_input(self, call: int, place: int, module: nn.Module, inputs: list[Tensor]) -> None:
        self._calls[call, place] += 1
        if inputs and inputs[0].numel() and self._calls[call, place] <= CALLS:
            known = self._last.of(inputs[0])
            self._inputs[call, place] = self._kept.keep(inputs[0]) if known is None else known

    def on_output(self, call: int, place: int, module: nn.Module, outputs: list[Tensor]) -> None:
        given = self._inputs.pop((call, place), None)
        if outputs and outputs[0].numel() and self._calls[call, place] <= CALLS:
            number = self._kept.keep(outputs[0], self._bounds(place))
            self._last.set(outputs[0], number)
            self._outputs.append((call, place, number, given))

    def read(self, lived: frozenset[int]) -> Batch:
        outputs = [each for each in self._outputs if each[0] in lived]
        tensors, order = self._kept.moments()
        count = len(self.subject.modules)
        self.arm()

        def finish(numbers: Sequence[list[float]]) -> list[Value]:
            rows = [flat[at : at + _MOMENTS] for flat in numbers for at in range(0, len(flat), _MOMENTS)]
            moments = dict(zip(order, rows, strict=True))
            by_place: dict[int, list[tuple[float, ...]]] = {}
            for _, place, output, given in outputs:
                mean, variance, *others = moments[output]
                fed = nan if given is None else _rms(*moments[given][:2])
                by_place.setdefault(place, []).append((mean, sqrt(variance), *others, fed))
            found: list[Value] = [None] * count
            for place, figures in by_place.items():
                found[place] = tuple(sum(column) / len(column) for column in zip(*figures, strict=True))
            return found

        return Batch(tensors, finish)

    def _bounds(self, place: int) -> _Bounds:
        """Outputs below and above which it saturates, and up to which they count as zeros; NaN for none."""
        kind = self.subject.activation(place)
        if kind != self.subject.network.modules[place].kind:  # called as a function, on this output
            return (*_INPUTS.get(kind, (nan, nan)), 0.0 if kind == "ReLU" else nan)
        return (*_bounds(self.subject.modules[place]), nan)


_Bounds = tuple[float, float, float]
_NONE = nan, nan, nan
_MOMENTS = 6  # mean, variance, kurtosis, zeros, saturated, largest


class _Kept:
    """A few elements of each tensor that passes, until there are so many that their moments are taken."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._count = self._elements = 0
        self._waiting: dict[tuple[torch.device, torch.dtype, int], list[tuple[int, Tensor, _Bounds]]] = {}
        self._tables: list[Tensor] = []
        self._order: list[int] = []

    def keep(self, tensor: Tensor, bounds: _Bounds = _NONE) -> int:
        """Its number."""
        some = _few(tensor, self._most)
        group = self._waiting.setdefault((some.device, some.dtype, len(some)), [])
        group.append((self._count, some, bounds))
        self._count += 1
        self._elements += len(some)
        if self._elements > HELD:  # of many calls, or of many parts of a batch
            self._settle()
        return self._count - 1

    def moments(self) -> tuple[list[Tensor], list[int]]:
        """[rows, moments] of those that are alike, and the numbers of all rows in order."""
        self._settle()
        return self._tables, self._order

    def _settle(self) -> None:
        for (_, _, length), group in self._waiting.items():
            most = max(1, STACKED // length)
            for start in range(0, len(group), most):
                numbers, some, bounds = zip(*group[start : start + most], strict=True)
                rows = torch.stack(some)
                self._tables.append(_moments(rows, rows.new_tensor(bounds)))
                self._order += numbers
        self._waiting, self._elements = {}, 0


def _moments(rows: Tensor, bounds: Tensor) -> Tensor:
    below, above, zero = bounds.unsqueeze(1).unbind(2)
    mean = rows.mean(1, keepdim=True)
    centred = rows - mean
    variance = centred.square().mean(1, keepdim=True)
    saturated = ((rows <= below) | (rows >= above)).to(rows.dtype).mean(1, keepdim=True)
    found = (
        mean,
        variance,
        (centred / variance.sqrt()).pow(4).mean(1, keepdim=True),
        ((rows == 0) | (rows <= zero)).to(rows.dtype).mean(1, keepdim=True),
        saturated.where(below < above, torch.nan),
        rows.abs().amax(1, keepdim=True),
    )
    return torch.cat(found, 1)


def _rms(mean: float, variance: float) -> float:
    return sqrt(mean * mean + variance)


def _bounds(module: nn.Module) -> tuple[float, float]:
    """Outputs at which an activation saturates, NaN if it is none that does."""
    if isinstance(module, nn.Hardtanh) and not isinstance(module, nn.ReLU6):
        return module.min_val, module.max_val
    for cls in type(module).__mro__:
        if cls.__name__ in _SATURATED and cls.__module__.startswith("torch.nn"):
            return _SATURATED[cls.__name__]
    return nan, nan


def _few(tensor: Tensor, most: int) -> Tensor:
    """A copy of some elements, in float32 or wider."""
    found = few(tensor, most, in_order=False)
    if found.is_complex():
        return found.abs()
    return found.float() if found.dtype.itemsize < 4 else found.clone()
