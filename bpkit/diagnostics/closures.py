"""`Step`: when the gradients of an optimizer's step are there, whether it is given a closure or not."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bpkit.diagnostics.shards import local

StepHook = Callable[[Optimizer], None]

LOOKS = 3  # steps in which values are compared: each waits for the device
FEW = 16  # parameters, and elements of each, that are

evaluated: ContextVar[bool] = ContextVar("evaluated", default=False)  # in this step, the closure was before


class Step:
    """One step of an optimizer after another: calls `before` once in each, ahead of all updates."""

    def __init__(self, before: StepHook, after: StepHook) -> None:
        self._before, self._after = before, after
        self._waiting = False
        self._ready: WeakSet[Optimizer] = WeakSet()  # have their gradients ahead of any closure
        self._looks: WeakKeyDictionary[Optimizer, int] = WeakKeyDictionary()

    def begin(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        """Torch's hook before a step: hands it a closure that calls `before` in place of a plain one."""
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        self._waiting = callable(closure) and optimizer not in self._ready
        if not self._waiting:
            self._before(optimizer)
            return None
        noting = self._noting(optimizer, closure)
        if "closure" in kwargs:
            return args, {**kwargs, "closure": noting}
        return (args[0], noting, *args[2:]), kwargs

    def end(self, optimizer: Optimizer) -> None:
        """The step is over."""
        if self._waiting:
            self._ready.add(optimizer)
            self._begun(optimizer)
        self._after(optimizer)

    def _noting(self, optimizer: Optimizer, closure: Callable[..., Any]) -> Callable[..., Any]:
        """The closure, which calls `before` when it is first over.

        Sharpness-aware optimizers (SAM) move ahead of it, by gradients that are there from the start: they
        are told by that, and from their next step on `before` does not wait.
        """
        looks = self._looks.get(optimizer, 0)
        self._looks[optimizer] = looks + 1
        place, first = _Place(optimizer, values=looks < LOOKS), True
        begun = torch.compiler.disable(self._begun)
        starts = torch.compiler.disable(self._starts)

        @functools.wraps(closure)
        def noting(*args: Any, **kwargs: Any) -> Any:
            nonlocal first
            if self._waiting:
                starts(optimizer, place)
            token = evaluated.set(not first)
            first = False
            try:
                value = closure(*args, **kwargs)
            finally:
                evaluated.reset(token)
            if self._waiting:
                begun(optimizer)
            return value

        return noting

    def _starts(self, optimizer: Optimizer, place: _Place) -> None:
        if place.left():
            self._ready.add(optimizer)

    def _begun(self, optimizer: Optimizer) -> None:
        self._waiting = False
        self._before(optimizer)


class _Place:
    """Where an optimizer's parameters are.

    Args:
        values: compare some of them too: what moves a parameter by its `data` counts as no new version.
    """

    def __init__(self, optimizer: Optimizer, *, values: bool) -> None:
        held = [each for group in optimizer.param_groups for each in group["params"]]
        held = [each for each in held if not nn.parameter.is_lazy(each)]
        self._some = held[:: max(1, len(held) // FEW)]
        self._versions = [each._version for each in self._some]
        self._values = [_elements(each) for each in self._some] if values else []

    def left(self) -> bool:
        """Whether they have moved."""
        if [each._version for each in self._some] != self._versions:
            return True
        pairs = zip(self._some, self._values, strict=False)
        return not all(
            torch.allclose(_elements(each), value, rtol=0, atol=0, equal_nan=True) for each, value in pairs
        )


def _elements(parameter: Tensor) -> Tensor:
    """Copies of a few."""
    flat = local(parameter.detach()).reshape(-1)
    return flat[:: max(1, flat.numel() // FEW)].clone()
