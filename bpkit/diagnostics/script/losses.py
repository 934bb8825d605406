"""`Losses`: what a script calls `backward` on, without an edit of the script.

The loss of a step is the sum of all that `backward` was called on since its gradients were empty: the
quantity whose gradient the step follows. Under accumulation that is the mean over the whole batch where
the script divides each part by their number, as it must for the gradient to be that of the mean, and it
is the sum where the script does not. A discriminator's is that of the real and of the made examples.

`Tensor.backward` looks `torch.autograd.backward` up when it is called; that, and `GradScaler.scale`, are
wrapped while a `Losses` is entered.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import TracebackType
from typing import Any
from weakref import WeakSet, ref

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer


class Tally:
    """The loss of one optimizer's next step, so far.

    Args:
        parameter: one of its parameters, which gets a gradient: a backward that leaves it as it is is not
            this optimizer's. None counts every backward.
        total: of the backwards that were before.
    """

    def __init__(self, parameter: nn.Parameter | None = None, total: Tensor | None = None) -> None:
        self.total = total
        self._parameter = None if parameter is None else ref(parameter)
        self._stepped = False
        self._before: tuple[int, int] | None = None

    def begin(self) -> None:
        """A backward begins."""
        self._before = self._state()
        if self._stepped or (self._parameter is not None and self._before is None):
            self.total, self._stepped = None, False

    def add(self, loss: Tensor) -> None:
        """It is over; it was of this loss."""
        if self._parameter is None or self._state() != self._before:
            self.total = loss if self.total is None else self.total + loss.to(self.total.device)

    def take(self) -> Tensor | None:
        """The optimizer has stepped: the loss of the step."""
        self._stepped = True
        return self.total

    def _state(self) -> tuple[int, int] | None:
        """What changes when something is added to the gradient, in place or not; None without a gradient."""
        parameter = None if self._parameter is None else self._parameter()
        if parameter is None or parameter.grad is None:
            return None
        return id(parameter.grad), parameter.grad._version


class Losses:
    """Keeps the tallies; a context manager, which restores what it wraps."""

    def __init__(self) -> None:
        self._tallies: list[Tally] = []
        self._scalers: WeakSet[GradScaler] = WeakSet()
        self._scaled: list[tuple[ref[Tensor], Tensor]] = []  # since the last backward, with what they scale
        self._wrapped: list[tuple[Any, str, Any, Any]] = []

    def tally(self, parameter: nn.Parameter | None = None, total: Tensor | None = None) -> Tally:
        """One more."""
        tally = Tally(parameter, total)
        self._tallies.append(tally)
        return tally

    def forget(self, tally: Tally) -> None:
        """One less, if it is there."""
        if tally in self._tallies:
            self._tallies.remove(tally)

    def scaler(self, optimizer: Optimizer) -> GradScaler | None:
        """The loss scaler that steps this optimizer, if one does."""
        for scaler in self._scalers:
            if scaler.is_enabled() and id(optimizer) in scaler._per_optimizer_states:
                return scaler
        return None

    def __enter__(self) -> Losses:
        self._wrap(torch.autograd, "backward", self._backward)
        self._wrap(GradScaler, "scale", self._scale)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Put back what is wrapped. Under another's wrapper, which keeps this one, it only falls silent."""
        wrapped, self._wrapped = self._wrapped, []
        for holder, name, original, wrapper in wrapped:
            if getattr(holder, name) is wrapper:
                setattr(holder, name, original)

    def _wrap(self, holder: Any, name: str, noting: Callable[..., Any]) -> None:
        original = getattr(holder, name)

        @functools.wraps(original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return noting(original, *args, **kwargs) if self._wrapped else original(*args, **kwargs)

        setattr(holder, name, wrapper)
        self._wrapped.append((holder, name, original, wrapper))

    def _backward(
        self, original: Any, tensors: Any, grad_tensors: Any = None, *args: Any, **kwargs: Any
    ) -> None:
        loss = None if torch.compiler.is_compiling() else self._loss(tensors, grad_tensors)
        if loss is None:
            original(tensors, grad_tensors, *args, **kwargs)
            return
        for each in self._tallies:
            each.begin()
        original(tensors, grad_tensors, *args, **kwargs)
        for each in self._tallies:
            each.add(loss)

    def _loss(self, tensors: Any, gradients: Any) -> Tensor | None:
        """The number that a backward starts from; None for a gradient, and for a backward in another."""
        if gradients is not None or torch._C._current_graph_task_id() != -1:
            return None
        if isinstance(tensors, Tensor):
            return self._true(tensors) if tensors.numel() == 1 else None
        roots = list(tensors)
        if not roots or any(root.numel() != 1 for root in roots):
            return None
        return torch.stack([self._true(root) for root in roots]).sum()

    def _true(self, root: Tensor) -> Tensor:
        """The loss without its scale: what was scaled, or, where that was changed since, by division."""
        scaled = self._scaled
        if scaled:
            self._scaled = []
            for place, (each, unscaled) in enumerate(scaled):
                if each() is root:
                    self._scaled = scaled[place + 1 :]
                    return unscaled
        loss = root.detach()
        if loss.dim():
            loss = loss.reshape(())
        if scaled:
            for scaler in self._scalers:
                if scaler._scale is not None:
                    return loss / scaler._scale.to(loss.device)
        return loss

    def _scale(self, original: Any, scaler: GradScaler, outputs: Any) -> Any:
        scaled = original(scaler, outputs)
        self._scalers.add(scaler)
        if isinstance(scaled, Tensor) and scaled.numel() == 1 and scaler.is_enabled():
            self._scaled = [each for each in self._scaled if each[0]() is not None]
            self._scaled.append((ref(scaled), outputs.detach().reshape(())))
        return scaled
