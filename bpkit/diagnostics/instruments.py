"""What a sample is measured with: one class a quantity, one figure a parameter.

An instrument only enqueues work on the device; the watch copies the figures of all of them to the
host at once. A diagnostic names the instruments that it needs, and no other runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler, OptState

from bpkit.diagnostics.sample import Provenance

Figures = Sequence[Tensor | float | None]


class Instrument:
    """Reads one quantity of every parameter on a sampled step; overrides what it reads by.

    The calls of a sampled step, in order: `arm`, `on_gradient` for every parameter and backward,
    `before_step`, `after_step`, `read`.

    Args:
        parameters: the watched parameters; `read` gives one figure for each.
        scaler: mixed precision's loss scaler, if the run has one.
    """

    provenance = Provenance("at step")

    def __init__(self, parameters: Sequence[nn.Parameter], scaler: GradScaler | None = None) -> None:
        self.parameters = parameters
        self.scaler = scaler if scaler is not None and scaler.is_enabled() else None

    def arm(self) -> None:
        """A sampled step begins, ahead of its forward."""

    def on_gradient(self, index: int, grad: Tensor) -> None:
        """A backward has added to a parameter's gradient, which now is `grad`."""

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """The parameters are about to move."""

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """The parameters have moved; the gradients are still there."""

    def read(self) -> Figures:
        """A 0-d tensor, a number or None for each parameter."""
        raise NotImplementedError


class GradientNorm(Instrument):
    """‖∂L/∂p‖ as the optimizer used it: unscaled, accumulated, reduced, after clipping."""

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        self._norms = norms([_dense(parameter.grad) for parameter in self.parameters])
        if self.scaler is not None and _still_scaled(self.scaler, optimizer):
            self._norms = _divided(self._norms, self.scaler)

    def read(self) -> Figures:
        return self._norms


class AccumulatedNorm(Instrument):
    """‖∂L/∂p‖ where it accumulates: unscaled, this rank's own, before clipping.

    A step abandoned by the scaler is overwritten by the next.
    """

    provenance = Provenance("accumulated", reduced=False)

    def arm(self) -> None:
        self._norms: list[Tensor | None] = [None] * len(self.parameters)

    def on_gradient(self, index: int, grad: Tensor) -> None:
        dense = _dense(grad)
        assert dense is not None
        self._norms[index] = torch.linalg.vector_norm(dense, dtype=_real(dense))

    def read(self) -> Figures:
        return self._norms if self.scaler is None else _divided(self._norms, self.scaler)


class WeightNorm(Instrument):
    """‖p‖ as the gradient saw it, before the optimizer moves it."""

    provenance = Provenance("before step")

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        lazy = nn.parameter.is_lazy
        self._norms = norms([None if lazy(each) else each.detach() for each in self.parameters])

    def read(self) -> Figures:
        return self._norms


class GradientRate(Instrument):
    """Long-run factor from gradient to update, lr / (1 − momentum), where the optimizer has one.

    None where the update does not scale with the gradient: an optimizer with `eps` or `betas` in its
    groups (Adam and its kin) divides by the gradient's own size. None for an unknown optimizer too.
    """

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        rates: dict[int, Tensor | float] = {}
        for group in optimizer.param_groups:
            if "momentum" in group and not {"eps", "betas"} & group.keys():
                rate = group["lr"] / (1 - min(group["momentum"], 0.999))
                rates.update((id(parameter), rate) for parameter in group["params"])
        self._rates = [rates.get(id(parameter)) for parameter in self.parameters]

    def read(self) -> Figures:
        return self._rates


def norms(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Euclidean norms in float32 or wider, None for None, by as few kernels as torch can."""
    found: list[Tensor | None] = [None] * len(tensors)
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for index, tensor in enumerate(tensors):
        if tensor is not None and tensor.numel():
            groups.setdefault((tensor.device, tensor.dtype), []).append(index)
    for indices in groups.values():
        group = [tensor for index in indices if (tensor := tensors[index]) is not None]
        for index, value in zip(indices, torch._foreach_norm(group, 2, _real(group[0])), strict=True):
            found[index] = value
    return found


def to_host(figures: Sequence[Tensor | float | None]) -> list[float | None]:
    """The figures as numbers, by one copy from each device that holds some."""
    values = [None if isinstance(figure, Tensor) else figure for figure in figures]
    places: dict[torch.device, list[int]] = {}
    for index, figure in enumerate(figures):
        if isinstance(figure, Tensor):
            places.setdefault(figure.device, []).append(index)
    for indices in places.values():
        column = torch.stack([figure for index in indices if isinstance(figure := figures[index], Tensor)])
        for index, value in zip(indices, column.tolist(), strict=True):
            values[index] = value
    return values


def _dense(grad: Tensor | None) -> Tensor | None:
    """A sparse gradient's values, its repeated rows added up."""
    return grad.coalesce().values() if grad is not None and grad.is_sparse else grad


def _real(tensor: Tensor) -> torch.dtype | None:
    """float32 for half precision, whose squares overflow; None, the tensor's own, otherwise."""
    return torch.float32 if tensor.dtype in (torch.float16, torch.bfloat16) else None


def _still_scaled(scaler: GradScaler, optimizer: Any) -> bool:
    """Whether `step` ran on scaled gradients: neither `unscale_` nor a fused kernel divided them."""
    stage = scaler._per_optimizer_states[id(optimizer)]["stage"]
    return stage is OptState.READY and getattr(optimizer, "grad_scale", None) is None


def _divided(values: list[Tensor | None], scaler: GradScaler) -> list[Tensor | None]:
    """The norms over the loss scale, which stays on its device; there is none before the first loss."""
    scale = scaler._scale
    if scale is None:
        return values
    return [None if value is None else value / scale.to(value.device) for value in values]
