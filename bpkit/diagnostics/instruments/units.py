"""`Units`: which units of a rectifier let cases through, told over a window of samples."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from functools import reduce
from typing import ClassVar

import torch
from torch import Tensor, nn

from bpkit.diagnostics.instruments.activations import ELEMENTS
from bpkit.diagnostics.instruments.figures import Figure, Figures
from bpkit.diagnostics.instruments.instrument import Instrument
from bpkit.diagnostics.sample import Provenance
from bpkit.diagnostics.shards import local
from bpkit.diagnostics.subject import Subject

_CHANNELS_FIRST = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
)


class Units(Instrument):
    """Units of rectifiers that let no case through: over this step, and over a window of samples.

    A unit is a feature (a channel of a convolution). `silent` is the share that gave zero for every case of
    this step; `dead` the share that did so in the whole window and whose inputs stayed below zero by more
    than their own standard deviation, NaN until the window is long enough to tell; `cases` how many it has. A
    unit that fires rarely has inputs that come near to zero, and is not counted.

    A rectifier that is called as a function is read at the module whose output it takes.
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
    samples: ClassVar[int] = 3  # the fewest that are a window
    cases: ClassVar[int] = 128  # and the fewest cases
    longest: ClassVar[int] = 128  # samples that are kept for it

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self._windows: dict[int, _Windows] = {}

    def arm(self) -> None:
        self._now: dict[int, list[tuple[int, _Window]]] = {}
        self._channels_first = False  # whether features are axis 1, as the last layer with weights had them

    def on_input(self, call: int, place: int, module: nn.Module, inputs: list[Tensor]) -> None:
        if self.subject.network.modules[place].kind in self.below:
            self._look(call, place, inputs)

    def on_output(self, call: int, place: int, module: nn.Module, outputs: list[Tensor]) -> None:
        if next(module.parameters(recurse=False), None) is not None:
            self._channels_first = isinstance(module, _CHANNELS_FIRST)
        if (self.subject.functional or {}).get(place) in self.below:
            self._look(call, place, outputs)

    def _look(self, call: int, place: int, tensors: list[Tensor]) -> None:
        tensor = local(tensors[0].detach()) if tensors else torch.empty(0)
        if tensor.dim() < 2 or not tensor.numel():
            return
        features = tensor.movedim(1, -1) if self._channels_first and tensor.dim() > 2 else tensor
        rows = features.reshape(-1, features.shape[-1])
        rows = rows[:: max(1, rows.numel() // (8 * ELEMENTS))].float()
        few = rows[:: max(1, rows.numel() // ELEMENTS)]
        now = _Window(1, len(rows), rows.amax(0), few.mean(0), few.square().mean(0))
        self._now.setdefault(place, []).append((call, now))

    def read(self, lived: frozenset[int]) -> Figures:
        found: list[Figure] = []
        for place in range(len(self.subject.modules)):
            seen = [now for call, now in self._now.get(place, ()) if call in lived]
            if not seen or any(each.largest.shape != seen[0].largest.shape for each in seen):
                found.append(None)
                continue
            now = replace(reduce(_Window.with_, seen), samples=1)
            window = self._windows.setdefault(place, _Windows()).add(now)
            below = self.below[self.subject.activation(place)]
            long = window.samples >= self.samples and window.cases >= self.cases
            figures = torch.full((4,), torch.nan, device=now.largest.device)
            figures[0] = (now.largest <= below).float().mean()
            if long:
                figures[1] = (window.largest + window.spread < below).float().mean()
            figures[2], figures[3] = len(now.largest), window.cases
            found.append(figures)
        return found


@dataclass(frozen=True)
class _Window:
    """The largest input of each unit over some cases, their mean and mean square."""

    samples: int
    cases: int
    largest: Tensor
    mean: Tensor
    square: Tensor

    @property
    def spread(self) -> Tensor:
        """Standard deviation of each unit's inputs."""
        return (self.square - self.mean.square()).clamp_min(0).sqrt()

    def with_(self, other: _Window) -> _Window:
        """Both together."""
        cases = self.cases + other.cases
        share = other.cases / cases
        return _Window(
            self.samples + other.samples,
            cases,
            self.largest.maximum(other.largest),
            self.mean.lerp(other.mean, share),
            self.square.lerp(other.square, share),
        )


class _Windows:
    """The shortest run of last samples that is long enough to tell."""

    def __init__(self) -> None:
        self._last: deque[_Window] = deque(maxlen=Units.longest)

    def add(self, now: _Window) -> _Window:
        """The window that ends with this sample."""
        if self._last and self._last[-1].largest.shape != now.largest.shape:
            self._last.clear()
        self._last.append(now)
        window = now
        for earlier in reversed(list(self._last)[:-1]):
            if window.samples >= Units.samples and window.cases >= Units.cases:
                break
            window = window.with_(earlier)
        return window
