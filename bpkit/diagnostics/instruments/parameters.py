"""What is measured of parameters: gradients, weights, and how the optimizer treats each."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bpkit.diagnostics.instruments.figures import Figures
from bpkit.diagnostics.instruments.instrument import Instrument
from bpkit.diagnostics.instruments.norms import dense, norms
from bpkit.diagnostics.sample import Provenance


class GradientNorm(Instrument):
    """‖∂L/∂p‖ as the optimizer used it: unscaled, accumulated, reduced, after clipping."""

    light = True

    def after_step(self, optimizer: Optimizer) -> None:
        self._norms = norms([dense(parameter.grad) for parameter in self.subject.parameters])
        if self.subject.still_scaled(optimizer):
            self._norms = [self.subject.unscaled(value) for value in self._norms]

    def read(self, lived: frozenset[int]) -> Figures:
        return self._norms


class AccumulatedNorm(Instrument):
    """‖∂L/∂p‖ when the last backward before the step is over: unscaled, reduced, before clipping.

    Under a loss scaler a step that it abandons is overwritten by the next.
    """

    provenance = Provenance("accumulated")

    def arm(self) -> None:
        self._norms: list[Tensor | None] = [None] * len(self.subject.parameters)

    def on_backward(self) -> None:
        self._norms = norms([dense(parameter.grad) for parameter in self.subject.parameters])

    def read(self, lived: frozenset[int]) -> Figures:
        return [self.subject.unscaled(value) for value in self._norms]


class WeightNorm(Instrument):
    """‖p‖ as the gradient saw it, before the optimizer moves it."""

    provenance = Provenance("before step")

    light = True

    def before_step(self, optimizer: Optimizer) -> None:
        lazy = nn.parameter.is_lazy
        self._norms = norms([None if lazy(each) else each.detach() for each in self.subject.parameters])

    def read(self, lived: frozenset[int]) -> Figures:
        return self._norms


class GradientRate(Instrument):
    """Long-run factor from gradient to update, lr / (1 − momentum), where the optimizer has one.

    None where the update does not scale with the gradient: an optimizer with `eps` or `betas` in its
    groups (Adam and its kin) divides by the gradient's own size. None for an unknown optimizer too.
    """

    light = True

    def after_step(self, optimizer: Optimizer) -> None:
        rates: dict[int, Tensor | float] = {}
        for group in optimizer.param_groups:
            if "momentum" in group and not {"eps", "betas"} & group.keys():
                rate = group["lr"] / (1 - min(group["momentum"], 0.999))
                rates.update((id(parameter), rate) for parameter in group["params"])
        self._rates = [rates.get(id(parameter)) for parameter in self.subject.parameters]

    def read(self, lived: frozenset[int]) -> Figures:
        return self._rates


class Standing(Instrument):
    """What a parameter is to the training.

    `trainable`: it requires a gradient; `reached`: it has one; `held`: the optimizer has it; `rate`: its
    learning rate, NaN where the optimizer has none. 1 and 0 for yes and no.
    """

    columns = ("trainable", "reached", "held", "rate")

    light = True

    def after_step(self, optimizer: Optimizer) -> None:
        rates: dict[int, float] = {}
        for group in optimizer.param_groups:
            rate = float(group.get("lr", torch.nan))  # of a tensor once a group
            rates.update((id(parameter), rate) for parameter in group["params"])
        self._figures = [
            (
                float(each.requires_grad),
                float(each.grad is not None),
                float(id(each) in rates),
                rates.get(id(each), torch.nan),
            )
            for each in self.subject.parameters
        ]

    def read(self, lived: frozenset[int]) -> Figures:
        return self._figures
