"""What every optimizer here shares: torch's constructor and state, one `update` written by hand.

A class subclasses its torch twin, so that arguments, defaults, their checks, parameter groups and the
state dict are torch's own, and a checkpoint moves between the two. `step` gathers what has a gradient;
`update` is the rule, over lists of tensors (`torch._foreach_*`: one kernel for many parameters).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

State = dict[str, Any]


class Update(torch.optim.Optimizer):
    """Mixed in ahead of a torch optimizer; the subclass writes `update`.

    Attributes:
        sparse: whether `update` can take sparse gradients.
    """

    sparse = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        for flag in ("fused", "capturable", "differentiable"):
            if kwargs.get(flag):
                raise ValueError(
                    f"{type(self).__name__} writes its update out: leave {flag}=True to torch.optim"
                )
        super().__init__(*args, **kwargs)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient.

        Args:
            closure: evaluates the model again and returns the loss.

        Returns:
            The closure's loss, or None.

        Raises:
            RuntimeError: a sparse gradient, where the rule does not take them.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None]
            if not params:
                continue
            grads = [param.grad for param in params]
            if not self.sparse and any(grad.is_sparse for grad in grads):
                raise RuntimeError(f"{type(self).__name__} does not support sparse gradients")
            states = [self.state.get(param, {}) for param in params]
            if group.get("maximize"):
                grads = list(torch._foreach_neg(grads))
            self.update(group, [*map(real, params)], [*map(real, grads)], states)
            self.state.update((param, state) for param, state in zip(params, states, strict=True) if state)
        return loss

    @abstractmethod
    def update(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], states: list[State]
    ) -> None:
        """Move `params` (a group's, or part of it) along `grads`, in place, keeping `states`."""


def tensors(states: list[State], name: str, params: list[Tensor], value: float = 0.0) -> list[Tensor]:
    """The tensor called `name` of each state, made like its parameter and filled on first use."""
    for state, param in zip(states, params, strict=True):
        if name not in state:
            kept = torch.full_like(param, value, memory_format=torch.preserve_format)
            state[name] = like_parameter(kept, param)
    return [real(state[name]) for state in states]


def count(states: list[State]) -> list[float]:
    """Add one to each state's `step` (a 0-d tensor, as torch keeps it) and return the new values."""
    for state in states:
        state.setdefault("step", torch.zeros((), dtype=torch.get_default_dtype()))
    torch._foreach_add_([state["step"] for state in states], 1)
    return [float(state["step"]) for state in states]


def real(tensor: Tensor) -> Tensor:
    """A complex tensor as pairs of reals, as torch updates them."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def like_parameter(tensor: Tensor, param: Tensor) -> Tensor:
    """`tensor` as state of the parameter behind `param`: complex, if that is."""
    complex_behind = param._is_view() and param._base is not None and param._base.is_complex()
    return torch.view_as_complex(tensor) if complex_behind else tensor
