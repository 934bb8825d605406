"""What is measured at modules: activations, units that fire, and the errors δ that come back."""

from __future__ import annotations

from math import gcd

import torch
from torch import Tensor, nn

from bpkit.diagnostics.instruments.instrument import Figure, Figures, Instrument
from bpkit.diagnostics.instruments.norms import real
from bpkit.diagnostics.sample import Provenance
from bpkit.diagnostics.shards import local

ELEMENTS = 1 << 15  # of one activation that its moments are taken over: 0.6 % of their size

# Where an activation's slope is a twentieth of its steepest or less, by the size of its output.
_SATURATED: dict[str, tuple[float, float]] = {
    "Sigmoid": (0.0127, 0.9873),  #     y (1 - y) = 0.05 / 4
    "Tanh": (-0.9747, 0.9747),  #       1 - y² = 0.05
    "Softsign": (-0.7764, 0.7764),  #   (1 - |y|)² = 0.05
    "Hardsigmoid": (0.0, 1.0),
    "Hardtanh": (-1.0, 1.0),
}

# The same by the size of the input, for those that are called as functions.
_INPUTS: dict[str | None, tuple[float, float]] = {
    "Sigmoid": (-4.357, 4.357),
    "Tanh": (-2.1785, 2.1785),
    "Softsign": (-3.4721, 3.4721),
}


class _Calls(Instrument):
    """One vector of figures a module and call of the model, combined over those that trained."""

    of = "modules"

    def arm(self) -> None:
        self._figures: dict[int, list[tuple[int, Tensor]]] = {}

    def note(self, call: int, place: int, figures: Tensor) -> None:
        self._figures.setdefault(place, []).append((call, figures))

    def read(self, lived: frozenset[int]) -> Figures:
        found: list[Figure] = []
        for place in range(len(self.subject.modules)):
            figures = [each for call, each in self._figures.get(place, ()) if call in lived]
            if not figures:
                found.append(None)
            else:
                found.append(figures[0] if len(figures) == 1 else self.combined(torch.stack(figures)))
        self._figures = {}
        return found

    def combined(self, figures: Tensor) -> Tensor:
        """Several calls [calls, columns] as one: their means."""
        return figures.mean(0)


class Activations(_Calls):
    """The first output of each module: mean, standard deviation, kurtosis, share of zeros and of saturation.

    Moments of at most 32,768 elements, evenly spread. `saturated` is the share of outputs whose slope is a
    twentieth of the activation's steepest or less, NaN for a module that is no bounded activation. `largest`
    is the greatest size; `input` the root mean square of the first input, NaN without one. Where the output
    goes on into an activation that is called as a function, `zeros` and `saturated` are of that.
    """

    columns = ("mean", "std", "kurtosis", "zeros", "saturated", "largest", "input")
    provenance = Provenance("forward", reduced=False)

    def arm(self) -> None:
        super().arm()
        self._inputs: dict[tuple[int, int], Tensor] = {}

    def on_input(self, call: int, place: int, module: nn.Module, inputs: list[Tensor]) -> None:
        if inputs and inputs[0].numel():
            few = _few(inputs[0])
            self._inputs[call, place] = few.square().mean().sqrt()

    def on_output(self, call: int, place: int, module: nn.Module, outputs: list[Tensor]) -> None:
        if not outputs or not outputs[0].numel():
            return
        few = _few(outputs[0])
        mean = few.mean()
        square = (few - mean).square()
        variance = square.mean()
        kurtosis = square.square().mean() / variance.square()
        kind = self.subject.activation(place)
        after = kind if kind != self.subject.network.modules[place].kind else None
        bounds = _INPUTS.get(after) if after else _bounds(module)
        nothing = torch.full_like(mean, torch.nan)
        saturated = ((few <= bounds[0]) | (few >= bounds[1])).float().mean() if bounds else nothing
        zeros = few <= 0 if after == "ReLU" else few == 0
        figures = (
            mean,
            variance.sqrt(),
            kurtosis,
            zeros.float().mean(),
            saturated,
            few.abs().amax(),
            self._inputs.pop((call, place), nothing),
        )
        self.note(call, place, torch.stack(figures))


class Finite(_Calls):
    """Whether a module's inputs, and its outputs, have an element that is not finite: 1 and 0 for yes and no.

    By their sums, in float32 or wider. An input that is the output of the module before is not summed again.
    """

    columns = ("inputs", "outputs")
    provenance = Provenance("forward", reduced=False)

    def arm(self) -> None:
        super().arm()
        self._last: tuple[Tensor, int, Tensor] | None = None

    def on_input(self, call: int, place: int, module: nn.Module, inputs: list[Tensor]) -> None:
        self._note(call, place, 0, inputs)

    def on_output(self, call: int, place: int, module: nn.Module, outputs: list[Tensor]) -> None:
        self._note(call, place, 1, outputs)

    def _note(self, call: int, place: int, column: int, tensors: list[Tensor]) -> None:
        for tensor in tensors:
            if tensor.numel():
                figures = torch.full((2,), torch.nan, device=tensor.device)
                figures[column] = self._bad(tensor)
                self.note(call, place, figures)

    def _bad(self, tensor: Tensor) -> Tensor:
        if self._last is not None and self._last[0] is tensor and self._last[1] == tensor._version:
            return self._last[2]
        total = local(tensor.detach()).sum(dtype=real(tensor.dtype))
        bad = (~total.isfinite()).float()
        self._last = (tensor, tensor._version, bad)
        return bad

    def combined(self, figures: Tensor) -> Tensor:
        """The largest of each; NaN stays where a column has none."""
        none = figures.isnan().all(0)
        return figures.nan_to_num(-1.0).amax(0).masked_fill(none, torch.nan)

    def read(self, lived: frozenset[int]) -> Figures:
        self._last = None
        return super().read(lived)


class Deltas(_Calls):
    """‖∂L/∂output‖ and ‖∂L/∂input‖ of each module, over all its calls and backwards since the last step.

    An input's is by the paths through the module alone. -1 where none came: a number that is not finite is
    one that was measured. Scaled by the loss scale, if there is one.
    """

    columns = ("out", "in")
    provenance = Provenance("backward", scaled=True, reduced=False)

    def on_delta_out(self, call: int, place: int, delta: Tensor) -> None:
        self._note(call, place, 0, delta)

    def on_delta_in(self, call: int, place: int, delta: Tensor) -> None:
        self._note(call, place, 1, delta)

    def _note(self, call: int, place: int, column: int, delta: Tensor) -> None:
        norm = torch.linalg.vector_norm(local(delta), dtype=real(delta.dtype))
        figures = torch.full((2,), -1.0, device=norm.device)
        figures[column] = norm
        self.note(call, place, figures)

    def combined(self, figures: Tensor) -> Tensor:
        """Norm of norms of each."""
        came = figures != -1
        return torch.where(came.any(0), (figures.square() * came).sum(0).sqrt(), -1.0)


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


def _bounds(module: nn.Module) -> tuple[float, float] | None:
    """Outputs at which an activation saturates, if it is one that does."""
    if isinstance(module, nn.Hardtanh) and not isinstance(module, nn.ReLU6):
        return module.min_val, module.max_val
    for cls in type(module).__mro__:
        if cls.__name__ in _SATURATED and cls.__module__.startswith("torch.nn"):
            return _SATURATED[cls.__name__]
    return None


def _few(tensor: Tensor) -> Tensor:
    """At most `ELEMENTS` elements in float32 or wider, at a stride that meets every feature alike."""
    flat = local(tensor.detach()).reshape(-1)
    stride = max(1, flat.numel() // ELEMENTS)
    while stride > 1 and gcd(stride, tensor.shape[-1]) > 1:
        stride += 1
    few = flat[::stride]
    few = few.abs() if few.is_complex() else few
    return few.float() if few.dtype.itemsize < 4 else few


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
        self.note(call, place, torch.where(there > 0, small / there, 1.0).reshape(1))


class LossScale(Instrument):
    """The loss scale of mixed precision; None without one."""

    of = "model"
    light = True

    def read(self, lived: frozenset[int]) -> Figures:
        scaler = self.subject.scaler
        return [None if scaler is None or scaler._scale is None else scaler._scale.detach().clone()]
