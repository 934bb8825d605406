"""Where a step begins, gradients arrive and the step ends: torch's own hooks, and none on modules."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from bpkit.core.errors import BpkitError

_SILENT = logging.getLogger("bpkit.hooks")
_NOTHING = _SILENT.debug

StepHook = Callable[[Optimizer], None]


class ModuleHook:
    """A hook on a module, which a copy of the module or its pickle does not carry along.

    In its place they have a logger's `debug`, which takes anything, does nothing, and needs no bpkit.

    Attributes:
        traced: somebody has compiled what calls the module while the hook was there. It is not in their code.
    """

    def __init__(self, function: Callable[..., None]) -> None:
        self._function = function
        self.traced = False

    def __call__(self, *arguments: Any) -> None:
        if torch.compiler.is_compiling():
            self.traced = True
        else:
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
    one, stepping in turn, does not count steps twice. Who compiles the step does not compile what is called.
    """
    if optimizer is not None:
        return [
            optimizer.register_step_pre_hook(_uncompiled(before)),
            optimizer.register_step_post_hook(_uncompiled(after)),
        ]
    mine = _FirstOf(parameters)
    return [
        register_optimizer_step_pre_hook(_uncompiled(before, mine)),
        register_optimizer_step_post_hook(_uncompiled(after, mine)),
    ]


def _uncompiled(hook: StepHook, applies: Callable[[Optimizer], bool] | None = None) -> Any:
    """`hook` as torch calls one, for the optimizers that it applies to."""

    def called(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if applies is None or applies(optimizer):
            hook(optimizer)

    return torch.compiler.disable(called)


class _FirstOf:
    """Whether an optimizer is the first one met that holds some of these parameters."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = {id(parameter) for parameter in parameters}
        self._others: WeakKeyDictionary[Optimizer, int] = WeakKeyDictionary()  # with their number of groups
        self._first: ReferenceType[Optimizer] | None = None

    def __call__(self, optimizer: Optimizer) -> bool:
        if self._first is not None and self._first() is not None:
            return self._first() is optimizer
        groups = optimizer.param_groups
        if self._others.get(optimizer) == len(groups):
            return False
        if any(id(parameter) in self._parameters for group in groups for parameter in group["params"]):
            self._first = ref(optimizer)
            return True
        self._others[optimizer] = len(groups)
        return False


def on_gradients(parameters: Sequence[nn.Parameter], arrived: Callable[[int, Tensor], None]) -> list[Handle]:
    """Call `arrived(index, grad)` whenever a backward has added to a parameter's gradient."""

    def hook(index: int) -> Callable[[Tensor], None]:
        return lambda parameter: None if parameter.grad is None else arrived(index, parameter.grad)

    return [
        parameter.register_post_accumulate_grad_hook(hook(index))
        for index, parameter in enumerate(parameters)
        if parameter.requires_grad and parameter.is_leaf and not nn.parameter.is_lazy(parameter)
    ]
