"""What is measured at modules: activations, units that fire, and the errors δ that come back."""

from __future__ import annotations

from math import gcd
from typing import ClassVar

import torch
from torch import Tensor, nn

from bpkit.diagnostics.instruments.instrument import Figure, Figures, Instrument
from bpkit.diagnostics.instruments.norms import local, real
from bpkit.diagnostics.sample import Provenance

ELEMENTS = 1 << 15  # of one activation that its moments are taken over: 0.6 % of their size

_CHANNELS_FIRST = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
)

# Where an activation's slope is a twentieth of its steepest or less, by the size of its output.
_SATURATED: dict[str, tuple[float, float]] = {
    "Sigmoid": (0.0127, 0.9873),  #     y (1 - y) = 0.05 / 4
    "Tanh": (-0.9747, 0.9747),  #       1 - y² = 0.05
    "Softsign": (-0.7764, 0.7764),  #   (1 - |y|)² = 0.05
    "Hardsigmoid": (0.0, 1.0),
    "Hardtanh": (-1.0, 1.0),
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
    is the greatest size; `input` the root mean square of the first input, NaN without one.
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
        bounds = _bounds(module)
        nothing = torch.full_like(mean, torch.nan)
        saturated = ((few <= bounds[0]) | (few >= bounds[1])).float().mean() if bounds else nothing
        figures = (
            mean,
            variance.sqrt(),
            kurtosis,
            (few == 0).float().mean(),
            saturated,
            few.abs().amax(),
            self._inputs.pop((call, place), nothing),
        )
        self.note(call, place, torch.stack(figures))


class Finite(_Calls):
    """Shares of a module's inputs and outputs, of ∂L/∂output and of ∂L/∂input that are not finite."""

    columns = ("inputs", "outputs", "delta_out", "delta_in")
    provenance = Provenance("backward", reduced=False)

    def on_input(self, call: int, place: int, module: nn.Module, inputs: list[Tensor]) -> None:
        self._note(call, place, 0, inputs)

    def on_output(self, call: int, place: int, module: nn.Module, outputs: list[Tensor]) -> None:
        self._note(call, place, 1, outputs)

    def on_delta_out(self, call: int, place: int, delta: Tensor) -> None:
        self._note(call, place, 2, [delta])

    def on_delta_in(self, call: int, place: int, delta: Tensor) -> None:
        self._note(call, place, 3, [delta])

    def _note(self, call: int, place: int, column: int, tensors: list[Tensor]) -> None:
        for tensor in tensors:
            if tensor.numel():
                figures = torch.full((4,), torch.nan, device=tensor.device)
                figures[column] = _nonfinite(local(tensor))
                self.note(call, place, figures)

    def combined(self, figures: Tensor) -> Tensor:
        """The largest of each; NaN stays where a column has none."""
        none = figures.isnan().all(0)
        return figures.nan_to_num(-1.0).amax(0).masked_fill(none, torch.nan)


class Deltas(_Calls):
    """‖∂L/∂output‖ and ‖∂L/∂input‖ of each module, over all its calls and backwards since the last step.

    An input's is by the paths through the module alone. Scaled by the loss scale, if there is one.
    """

    columns = ("out", "in")
    provenance = Provenance("backward", scaled=True, reduced=False)

    def on_delta_out(self, call: int, place: int, delta: Tensor) -> None:
        self._note(call, place, 0, delta)

    def on_delta_in(self, call: int, place: int, delta: Tensor) -> None:
        self._note(call, place, 1, delta)

    def _note(self, call: int, place: int, column: int, delta: Tensor) -> None:
        norm = torch.linalg.vector_norm(local(delta), dtype=real(delta.dtype))
        figures = torch.full((2,), torch.nan, device=norm.device)
        figures[column] = norm
        self.note(call, place, figures)

    def combined(self, figures: Tensor) -> Tensor:
        """Norm of norms of each; NaN stays where a column has none."""
        none = figures.isnan().all(0)
        return figures.square().nansum(0).sqrt().masked_fill(none, torch.nan)


class Units(Instrument):
    """Units of rectifiers that let no case through: over this step, and over a window of samples.

    A unit is a feature (a channel of a convolution). `silent` is the share that gave zero for every case of
    this step; `dead` the share that did so in the whole window and whose inputs stayed below zero by more
    than their own standard deviation; `cases` how many cases the window has. A unit that fires rarely has
    inputs that come near to zero, and is not counted.
    """

    of = "modules"
    columns = ("silent", "dead", "units", "cases")
    provenance = Provenance("forward", reduced=False)
    below: ClassVar[dict[str, float]] = {  # inputs up to which nothing, or next to nothing, comes through
        "ReLU": 0.0,
        "ReLU6": 0.0,
        "Hardswish": -3.0,
        "GELU": -3.5,
        "SiLU": -9.0,
    }
    window: ClassVar[int] = 10  # samples; two of them overlap, so that no window is short

    def arm(self) -> None:
        if not hasattr(self, "_windows"):
            self._windows: dict[int, list[_Window]] = {}
        self._now: dict[int, list[tuple[int, Tensor, Tensor, int]]] = {}
        self._channels_first = False  # whether features are axis 1, as the last layer with weights had them

    def on_output(self, call: int, place: int, module: nn.Module, outputs: list[Tensor]) -> None:
        if next(module.parameters(recurse=False), None) is not None:
            self._channels_first = isinstance(module, _CHANNELS_FIRST)

    def on_input(self, call: int, place: int, module: nn.Module, inputs: list[Tensor]) -> None:
        if self.subject.network.modules[place].kind not in self.below or not inputs:
            return
        tensor = local(inputs[0].detach())
        if tensor.dim() < 2 or not tensor.numel():
            return
        features = tensor.movedim(1, -1) if self._channels_first and tensor.dim() > 2 else tensor
        rows = features.reshape(-1, features.shape[-1])
        rows = rows[:: max(1, rows.numel() // (8 * ELEMENTS))].float()
        spread = rows.std(0, correction=0)
        self._now.setdefault(place, []).append((call, rows.amax(0), spread, len(rows)))

    def read(self, lived: frozenset[int]) -> Figures:
        found: list[Figure] = []
        for place in range(len(self.subject.modules)):
            seen = [each for each in self._now.get(place, ()) if each[0] in lived]
            if not seen or any(each[1].shape != seen[0][1].shape for each in seen):
                found.append(None)
                continue
            largest = torch.stack([each[1] for each in seen]).amax(0)
            spread = torch.stack([each[2] for each in seen]).amax(0)
            cases = sum(each[3] for each in seen)
            windows = self._windows.setdefault(place, [_Window(), _Window()])
            if windows[0].samples >= self.window:
                windows[:] = [windows[1], _Window()]
            for window in windows if windows[0].samples >= self.window // 2 else windows[:1]:
                window.add(largest, spread, cases)
            whole = windows[0]
            below = self.below[self.subject.network.modules[place].kind]
            dead = (whole.largest + whole.spread < below).float().mean()
            silent = (largest <= below).float().mean()
            sizes = torch.tensor([float(len(largest)), float(whole.cases)]).to(largest.device)
            found.append(torch.cat([torch.stack([silent, dead]), sizes]))
        return found


class _Window:
    """The largest input of each unit over some samples, and the largest spread."""

    def __init__(self) -> None:
        self.samples = self.cases = 0
        self.largest, self.spread = torch.tensor(-torch.inf), torch.tensor(0.0)

    def add(self, largest: Tensor, spread: Tensor, cases: int) -> None:
        if self.samples == 0 or self.largest.shape != largest.shape:
            self.samples, self.cases, self.largest, self.spread = 0, 0, largest, spread
        self.samples += 1
        self.cases += cases
        self.largest, self.spread = self.largest.maximum(largest), self.spread.maximum(spread)


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
            size = torch.linalg.vector_norm(few.float()) / max(1, few.numel()) ** 0.5 * rows
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


def _nonfinite(tensor: Tensor) -> Tensor:
    """Share of elements that are not finite."""
    return 1 - tensor.detach().isfinite().sum() / tensor.numel()
