"""Where a step begins, gradients arrive and the step ends: torch's own hooks, and none on modules."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, Protocol
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from bpkit.core.errors import BpkitError
from bpkit.diagnostics.turns import Turns

_SILENT = logging.getLogger("bpkit.hooks")
_NOTHING = _SILENT.debug

_STEP = Optimizer.profile_hook_step(lambda self: None).__code__  # what all steps are wrapped in

StepHook = Callable[[Optimizer], None]

_again: ContextVar[bool] = ContextVar("again", default=False)  # a step runs its closure once more


class ModuleHook:
    """A hook on a module, which a copy of the module or its pickle does not carry along.

    In its place they have a logger's `debug`, which takes anything, does nothing, and needs no bpkit.

    Where an optimizer evaluates several times in a step (LBFGS), it is called in the first evaluation alone,
    with the parameters that the step begins with.

    Attributes:
        traced: somebody has compiled what calls the module while the hook was there. It is not in their code.
    """

    def __init__(self, function: Callable[..., None]) -> None:
        self._function = function
        self.traced = False

    def __call__(self, *arguments: Any) -> None:
        if torch.compiler.is_compiling():
            self.traced = True
        elif not _again.get():
            self._function(*arguments)

    def __deepcopy__(self, memo: object) -> Callable[..., None]:
        return _NOTHING

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (_SILENT, "debug")


class Handle(Protocol):
    """What registering a hook returns."""

    def remove(self) -> None: ...


def innermost(optimizer: Any) -> Optimizer:
    """The optimizer that has torch's hooks: wrappers such as Accelerate's hold it as `optimizer`.

    Raises:
        BpkitError: there is none.
    """
    inner = optimizer
    while not hasattr(inner, "_optimizer_step_post_hooks") and hasattr(inner, "optimizer"):
        inner = inner.optimizer
    if isinstance(inner, Optimizer):
        return inner
    raise BpkitError(f"watch: optimizer must be a torch.optim.Optimizer or hold one, not {optimizer!r}")


def on_step(
    optimizer: Optimizer | None, parameters: Sequence[nn.Parameter], before: StepHook, after: StepHook
) -> list[Handle]:
    """Call `before` and `after` around each step of `optimizer`.

    Without one, around those of the first optimizer that is seen to hold one of `parameters`: a second
    one, stepping in turn, does not count steps twice. One that takes the place of the first is followed
    (`turns.py`). Who compiles the step does not compile what is called.

    At `before` the gradients are there and the parameters have not moved: of a step that is given a
    closure, when that has first been run.
    """
    turns, step = Turns(parameters, optimizer), _Step(before, after)

    def begins(optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        return step.begin(optimizer, args, kwargs) if turns.begins(optimizer) else None

    def ends(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if turns.counts(optimizer):
            step.end(optimizer)

    if optimizer is None:
        return [
            register_optimizer_step_pre_hook(torch.compiler.disable(begins)),
            register_optimizer_step_post_hook(torch.compiler.disable(ends)),
        ]
    # On the optimizer itself: what others hook up there later is called later, when all is known.
    begin = torch.compiler.disable(step.begin)

    def at(optimizer: Optimizer) -> list[Handle]:
        return [
            optimizer.register_step_pre_hook(begin),
            optimizer.register_step_post_hook(torch.compiler.disable(ended)),
        ]

    def ended(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if len(handles) == 2:  # not before: a watch may begin in a hook of this kind
            handles.append(_Everywhere(passes))
        ends(optimizer, args, kwargs)

    def passes(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        known = turns.counts(optimizer)
        if turns.begins(optimizer) and not known:
            for handle in handles[:2]:
                handle.remove()
            handles[:2] = at(optimizer)

    handles = at(optimizer)
    return handles


class _Everywhere:
    """A hook before the steps of all optimizers, which may be removed inside one: torch would break off."""

    def __init__(self, hook: Callable[..., None]) -> None:
        self._hook: Callable[..., None] | None = hook
        self._handle = register_optimizer_step_pre_hook(torch.compiler.disable(self))

    def __call__(self, *arguments: Any) -> None:
        if self._hook is not None:
            self._hook(*arguments)

    def remove(self) -> None:
        self._hook = None
        frame: Any = sys._getframe(1)
        while frame is not None and frame.f_code is not _STEP:
            frame = frame.f_back
        if frame is None:
            self._handle.remove()  # else it stays, and does nothing: torch goes through the hooks just now


class _Step:
    """One step of an optimizer after another: calls `before` once in each, ahead of all updates."""

    def __init__(self, before: StepHook, after: StepHook) -> None:
        self._before, self._after = before, after
        self._waiting = False
        self._ready: WeakSet[Optimizer] = WeakSet()  # have their gradients ahead of any closure

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
        version, first = _version(optimizer), True
        begun = torch.compiler.disable(self._begun)

        @functools.wraps(closure)
        def noting(*args: Any, **kwargs: Any) -> Any:
            nonlocal first
            if self._waiting and _version(optimizer) != version:
                self._ready.add(optimizer)
            token = _again.set(not first)
            first = False
            try:
                value = closure(*args, **kwargs)
            finally:
                _again.reset(token)
            if self._waiting:
                begun(optimizer)
            return value

        return noting

    def _begun(self, optimizer: Optimizer) -> None:
        self._waiting = False
        self._before(optimizer)


def _version(optimizer: Optimizer) -> int:
    """What changes when the optimizer's first parameter does."""
    return next((each._version for group in optimizer.param_groups for each in group["params"]), 0)


def on_gradients(parameters: Sequence[nn.Parameter], arrived: Callable[[int, Tensor], None]) -> list[Handle]:
    """Call `arrived(index, grad)` whenever a backward has added to a parameter's gradient."""

    def hook(index: int) -> Callable[[Tensor], None]:
        return lambda parameter: None if parameter.grad is None else arrived(index, parameter.grad)

    return [
        parameter.register_post_accumulate_grad_hook(hook(index))
        for index, parameter in enumerate(parameters)
        if parameter.requires_grad and parameter.is_leaf and not nn.parameter.is_lazy(parameter)
    ]
