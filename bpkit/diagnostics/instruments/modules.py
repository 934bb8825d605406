"""What is measured at modules: non-finite values, and the errors δ that come back."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import isfinite, isnan, nan, sqrt

import torch
from torch import Tensor, nn

from bpkit.diagnostics.instruments.figures import Batch, Figures, Value
from bpkit.diagnostics.instruments.instrument import Instrument
from bpkit.diagnostics.instruments.last import Last
from bpkit.diagnostics.instruments.norms import real
from bpkit.diagnostics.sample import Provenance
from bpkit.diagnostics.shards import local


class _Calls(Instrument):
    """Numbers that the calls of modules leave behind, put together on the host."""

    of = "modules"

    def arm(self) -> None:
        self._noted: list[tuple[int, int, int, Tensor]] = []

    def note(self, call: int, place: int, column: int, number: Tensor) -> None:
        """A number, of no axes, of a module's call in a call of the model."""
        self._noted.append((call, place, column, number))

    def read(self, lived: frozenset[int]) -> Batch:
        noted = [each for each in self._noted if each[0] in lived]
        self._noted = []
        places = [each[:3] for each in noted]
        finish = partial(self._finish, places, len(self.subject.modules))
        return Batch([number for *_, number in noted], finish)

    def _finish(
        self, places: Sequence[tuple[int, int, int]], count: int, numbers: Sequence[list[float]]
    ) -> list[Value]:
        columns: dict[int, list[list[float]]] = {}
        for (_, place, column), (number,) in zip(places, numbers, strict=True):
            columns.setdefault(place, [[] for _ in self.columns])[column].append(number)
        found: list[Value] = [None] * count
        for place, each in columns.items():
            found[place] = tuple(map(self.together, each))
        return found

    @staticmethod
    def together(numbers: list[float]) -> float:
        """One column of a module, of what its calls left behind; they may have left nothing there."""
        raise NotImplementedError


class Finite(_Calls):
    """Whether a module's inputs, and its outputs, have an element that is not finite: 1 and 0 for yes and no.

    By their sums, in float32 or wider. An input that is the output of the module before is not summed again.
    NaN of a module without either.

    `input at` and `output at` say when first, counted over all that was looked at, NaN for never: of modules
    that are called several times the first event tells who began. `behind` is the place of the module that
    had run last, in the same call of the model, before that input; -1 for none.
    """

    columns = ("inputs", "outputs", "input at", "output at", "behind")
    provenance = Provenance("forward", reduced=False)

    def arm(self) -> None:
        super().arm()
        self._last: Last[Tensor] = Last()

    def on_input(self, call: int, place: int, module: nn.Module, inputs: list[Tensor]) -> None:
        for tensor in inputs:
            known = self._last.of(tensor)
            self._note(call, place, 0, tensor, _sum(tensor) if known is None else known)

    def on_output(self, call: int, place: int, module: nn.Module, outputs: list[Tensor]) -> None:
        for tensor in outputs:
            total = _sum(tensor)
            self._last.set(tensor, total)
            self._note(call, place, 1, tensor, total)

    def _note(self, call: int, place: int, column: int, tensor: Tensor, total: Tensor) -> None:
        if tensor.numel():
            self.note(call, place, column, total)

    def read(self, lived: frozenset[int]) -> Batch:
        self._last = Last()
        return super().read(lived)

    @staticmethod
    def together(numbers: list[float]) -> float:
        """Whether any sum is not finite."""
        return float(not all(map(isfinite, numbers)))

    def _finish(
        self, places: Sequence[tuple[int, int, int]], count: int, numbers: Sequence[list[float]]
    ) -> list[Value]:
        found: list[list[float] | None] = [None] * count
        last: tuple[int, int] = (-1, -1)  # the call of the model, and the place of the module that ran last
        for at, ((call, place, column), (number,)) in enumerate(zip(places, numbers, strict=True)):
            figures = found[place] = found[place] or [nan, nan, nan, nan, -1.0]
            bad = self.together([number])
            if bad and isnan(figures[2 + column]):
                figures[2 + column] = float(at)
                if column == 0:
                    figures[4] = float(last[1] if last[0] == call else -1)
            figures[column] = bad if isnan(figures[column]) else max(bad, figures[column])
            if column == 1:
                last = call, place
        return [None if each is None else tuple(each) for each in found]


class Deltas(_Calls):
    """‖∂L/∂output‖ and ‖∂L/∂input‖ of each module, over all its calls and backwards since the last step.

    An input's is by the paths through the module alone. -1 where none came: a number that is not finite is
    one that was measured. Scaled by the loss scale, if there is one.
    """

    columns = ("out", "in")
    provenance = Provenance("backward", scaled=True, reduced=False)

    def arm(self) -> None:
        super().arm()
        self._last: tuple[Tensor, Tensor] | None = None

    def on_delta_out(self, call: int, place: int, delta: Tensor) -> None:
        # What one module hands down is what the one before it is handed, unless something adds to it.
        last, self._last = self._last, None
        same = last is not None and _one(last[0], local(delta))
        self.note(call, place, 0, last[1] if last is not None and same else _norm(delta))

    def on_delta_in(self, call: int, place: int, delta: Tensor) -> None:
        norm = _norm(delta)
        self._last = local(delta), norm
        self.note(call, place, 1, norm)

    def on_backward(self) -> None:
        self._last = None

    @staticmethod
    def together(numbers: list[float]) -> float:
        """Norm of norms."""
        return sqrt(sum(number * number for number in numbers)) if numbers else -1.0


class OutputError(Instrument):
    """Root mean square of ∂L/∂output of the model's last module, times the cases in the batch.

    For a mean over cases this is the size of one case's error: p - y for cross-entropy.
    """

    of = "model"
    provenance = Provenance("backward", scaled=True, reduced=False)

    def arm(self) -> None:
        self._figures: list[tuple[int, Tensor]] = []

    def on_delta_out(self, call: int, place: int, delta: Tensor) -> None:
        # What a reentrant checkpoint runs again belongs to no call, and is never the last module.
        if not self._figures or self._figures[-1][0] != call != 0:
            rows = delta.shape[0] if delta.dim() else 1
            few = local(delta)
            size = torch.linalg.vector_norm(few, dtype=real(few.dtype)) / max(1, few.numel()) ** 0.5 * rows
            self._figures.append((call, size))

    def read(self, lived: frozenset[int]) -> Figures:
        sizes = [self.subject.unscaled(size) for call, size in self._figures if call in lived]
        known = [size for size in sizes if size is not None]
        return [torch.stack(known).mean() if known else None]


class Underflow(_Calls):
    """Of the errors δ that arrive in float16: the share that is below its normal numbers, zeros apart.

    Zeros are what rectifiers take out; where nothing else is left, all of it counts as lost.
    """

    columns = ("lost",)
    provenance = Provenance("backward", scaled=True, reduced=False)

    def on_delta_out(self, call: int, place: int, delta: Tensor) -> None:
        if delta.dtype is not torch.float16 or not delta.numel():
            return
        size = local(delta).abs()
        there = size.count_nonzero()
        small = ((size > 0) & (size < torch.finfo(torch.float16).tiny)).sum()
        self.note(call, place, 0, torch.where(there > 0, small / there, 1.0))

    @staticmethod
    def together(numbers: list[float]) -> float:
        """Mean over the calls."""
        return sum(numbers) / len(numbers)


def _sum(tensor: Tensor) -> Tensor:
    return local(tensor.detach()).sum(dtype=real(tensor.dtype))


def _norm(delta: Tensor) -> Tensor:
    return torch.linalg.vector_norm(local(delta), dtype=real(delta.dtype))


def _one(before: Tensor, now: Tensor) -> bool:
    """Whether it is the same numbers once more: `before` is kept, so that its memory is not another's."""
    return (
        before.data_ptr() == now.data_ptr() != 0
        and before._version == now._version
        and before.shape == now.shape
        and before.stride() == now.stride()
        and before.dtype == now.dtype
    )


class LossScale(Instrument):
    """The loss scale of mixed precision; None without one."""

    of = "model"
    light = True

    def read(self, lived: frozenset[int]) -> Figures:
        scaler = self.subject.scaler
        return [None if scaler is None or scaler._scale is None else scaler._scale.detach().clone()]
