"""Where a step begins, gradients arrive and the step ends: torch's own hooks, and none on modules."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any, Protocol
from weakref import WeakMethod

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_pre_hooks, register_optimizer_step_pre_hook

from bpkit.core.errors import BpkitError
from bpkit.diagnostics.closures import Step, StepHook, evaluated
from bpkit.diagnostics.turns import Turns

_STEP = Optimizer.profile_hook_step(lambda self: None).__code__  # what all steps are wrapped in


class ModuleHook:
    """A hook on a module, which a copy of the module or its pickle does not carry along.

    In its place they have a null context's `__exit__`: it takes anything, does nothing, and needs no bpkit.

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
        elif not evaluated.get():
            self._function(*arguments)

    def __deepcopy__(self, memo: object) -> Callable[..., None]:
        return nullcontext().__exit__

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (nullcontext(), "__exit__")


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
    optimizer: Optimizer | None,
    parameters: Callable[[], Iterable[nn.Parameter]],
    before: StepHook,
    after: StepHook,
) -> list[Handle]:
    """Call `before` and `after` around each step of `optimizer`.

    Without one, around those of the first optimizer that is seen to hold one of `parameters`: a second
    one, stepping in turn, does not count steps twice. One that takes the place of the first is followed
    (`turns.py`). Who compiles the step does not compile what is called.

    At `before` the gradients are there and the parameters have not moved: of a step that is given a
    closure, when that has first been run.

    The optimizer, once there is one, keeps alive what is called; torch's own lists do not.
    """
    return [_Following(optimizer, parameters, before, after)]


class _Following:
    """Hooks at the optimizer whose steps count, and one at all others, to see who takes its place."""

    def __init__(
        self,
        optimizer: Optimizer | None,
        parameters: Callable[[], Iterable[nn.Parameter]],
        before: StepHook,
        after: StepHook,
    ) -> None:
        self._turns, self._step = Turns(parameters, optimizer), Step(before, after)
        self._own: list[Handle] = []
        self._others: _Everywhere | None = None
        self._given = optimizer is not None
        begin = torch.compiler.disable(self._step.begin)
        if optimizer is None:
            self._others = _Everywhere(self._passes)
        else:
            self._stay_with(optimizer, _Given(begin))
        self._begin = begin

    def remove(self) -> None:
        """Take all hooks away."""
        for handle in self._own:
            handle.remove()
        if self._others is not None:
            self._others.remove()

    def _stay_with(self, optimizer: Optimizer, begin: Callable[..., Any]) -> None:
        # On the optimizer itself: what others hook up there later is called later, when all is known.
        for handle in self._own:
            handle.remove()
        ends = torch.compiler.disable(self._ends)
        self._own = [optimizer.register_step_pre_hook(begin), optimizer.register_step_post_hook(ends)]

    def _ends(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._others is None:  # not before: a watch may begin in a hook of this kind
            self._others = _Everywhere(self._passes)
        self._others.hold_weakly()
        if self._turns.counts(optimizer):
            self._step.end(optimizer)

    def _passes(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        known = self._turns.counts(optimizer)
        if not known and self._given and _is_given(optimizer):
            return  # somebody else's watch has it
        if self._turns.begins(optimizer) and not known:
            self._stay_with(optimizer, self._begin)


class _Given:
    """The hook before the steps of the optimizer that a watch was given, by which others know it."""

    def __init__(self, hook: Callable[..., Any]) -> None:
        self._hook = hook

    def __call__(self, *arguments: Any) -> Any:
        return self._hook(*arguments)


def _is_given(optimizer: Optimizer) -> bool:
    return any(isinstance(hook, _Given) for hook in optimizer._optimizer_step_pre_hooks.values())


class _Everywhere:
    """A hook before the steps of all optimizers, which may be removed in its turn: torch would break off."""

    def __init__(self, hook: Callable[..., None]) -> None:
        self._hook: Callable[[], Callable[..., None] | None] = lambda: hook
        self._handle = register_optimizer_step_pre_hook(torch.compiler.disable(self._passes))

    def _passes(self, *arguments: Any) -> None:
        hook = self._hook()
        if hook is not None:
            hook(*arguments)

    def hold_weakly(self) -> None:
        """From now on, go with the hook's object, which somebody else keeps."""
        hook = self._hook()
        if hook is not None and not isinstance(self._hook, WeakMethod):
            self._hook = WeakMethod(hook, lambda _: self.remove())

    def remove(self) -> None:
        self._hook = lambda: None
        if not _torch_goes_through_hooks():  # else it stays, and does nothing, until another one goes
            for hook in tuple(_global_optimizer_pre_hooks.values()):
                each = getattr(getattr(hook, "__wrapped__", None), "__self__", None)
                if isinstance(each, _Everywhere) and each._hook() is None:
                    each._handle.remove()


def _torch_goes_through_hooks() -> bool:
    """Whether some step is at those before it: neither in the optimizer's own function nor after that."""
    inner: Any = sys._getframe()
    while (frame := inner.f_back) is not None:
        if frame.f_code is _STEP and "out" not in frame.f_locals:
            function = frame.f_locals.get("func")
            if inner.f_code is not getattr(function, "__code__", None):
                return True
        inner = frame
    return False


def on_gradients(parameters: Sequence[nn.Parameter], arrived: Callable[[int, Tensor], None]) -> list[Handle]:
    """Call `arrived(index, grad)`, a method, whenever a backward has added to a parameter's gradient.

    Its object is not kept alive: Python's collector does not see through hooks of tensors.
    """
    method = WeakMethod(arrived)

    def hook(index: int) -> Callable[[Tensor], None]:
        def told(parameter: Tensor) -> None:
            function = method()
            if function is not None and parameter.grad is not None:
                function(index, parameter.grad)

        return told

    return [
        parameter.register_post_accumulate_grad_hook(hook(index))
        for index, parameter in enumerate(parameters)
        if parameter.requires_grad and parameter.is_leaf and not nn.parameter.is_lazy(parameter)
    ]
