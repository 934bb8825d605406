"""One operator of tensors: its forward, and beside it the rule for each argument's gradient.

    mul = op(
        lambda input, other: torch.mul(input, other),
        name="mul",
        input=lambda g, other: g * other,
        other=lambda g, input: g * input,
    )

A rule is tensor algebra that gives ∂L/∂argument from g = ∂L/∂output. The names of its parameters say
what else it reads, and that alone is kept for backward, and only where the argument wants a gradient:

    input, other, …     an argument of the forward: a tensor (saved), or a number or flag (free)
    out                 the output; of an operator with several, each by its place: out0, out1, …
    shape               the shape of the argument whose gradient is asked for (free)

`op` does the rest: where an argument was broadcast its gradient is summed back to its shape, and it is
cast to its dtype and device. For complex tensors the gradient of a holomorphic function is g times the
conjugate of its derivative, so a rule is given the conjugates of what it reads, which comes to the same
for every rule whose own coefficients are real (`core/holomorphic.py`).

Sources: Griewank & Walther, "Evaluating derivatives", 2008, ch. 3; for the form of the tables, HIPS
autograd, https://github.com/HIPS/autograd.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active, _is_any_autocast_enabled

from bpkit.core.function import CastPolicy, Function

Rule = Callable[..., Tensor]


class UnboundError(TypeError):
    """A call whose arguments are not those of the operator."""


def op(
    forward: Callable[..., Any],
    *,
    name: str,
    holomorphic: bool = True,
    autocast: Mapping[str, CastPolicy] | None = None,
    **rules: Rule,
) -> Callable[..., Any]:
    """The operator `forward` with hand-written gradients, called as `forward` is.

    Args:
        forward: of tensors and settings, with torch's names for them.
        name: what it is called, in the graph as well.
        holomorphic: whether the rules hold for complex tensors; where not, a complex tensor is refused.
        autocast: see `Function.autocast`.
        rules: by argument, how its gradient comes about.

    Returns:
        A function with the signature of `forward`. Arguments without a rule get no gradient. Where no
        gradient is recorded it is `forward` itself.
    """
    parameters = list(inspect.signature(forward).parameters)
    defaults = [each.default for each in inspect.signature(forward).parameters.values()]
    places = {argument: parameters.index(argument) for argument in rules}
    reads = {argument: tuple(inspect.signature(rule).parameters) for argument, rule in rules.items()}

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        outputs = output if isinstance(output, tuple) else (output,)
        integers = [each for each in outputs if not (each.is_floating_point() or each.is_complex())]
        if integers:
            ctx.mark_non_differentiable(*integers)
        wanted = {argument for argument, place in places.items() if ctx.needs_input_grad[place]}
        read = {each for argument in wanted for each in reads[argument]}
        known = dict(zip(parameters, inputs, strict=True))
        known |= {f"out{i}": each for i, each in enumerate(outputs)} | {"out": outputs[0]}
        ctx.known = {key: known[key] for key in read & known.keys() if not isinstance(known[key], Tensor)}
        ctx.names = tuple(key for key in known if key in read and isinstance(known[key], Tensor))
        ctx.save_for_backward(*(known[key] for key in ctx.names))
        ctx.likes = {
            argument: (known[argument].shape, known[argument].dtype, known[argument].device)
            for argument in wanted
        }

    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        known = ctx.known | dict(zip(ctx.names, ctx.saved_tensors, strict=True))
        known = {key: _conjugate(value) for key, value in known.items()} | {"g": grad_outputs[0]}
        gradients: list[Tensor | None] = [None] * len(parameters)
        for argument, (shape, dtype, device) in ctx.likes.items():
            known["shape"] = shape
            gradient = rules[argument](*(known[each] for each in reads[argument]))
            gradients[places[argument]] = _like(gradient, shape, dtype, device)
        return tuple(gradients)

    body = {
        "autocast": autocast or {},
        "forward": staticmethod(forward),
        "setup_context": staticmethod(setup_context),
        "backward": staticmethod(backward),
        "__module__": forward.__module__,
        "__doc__": f"The operator {name}.",
    }
    made: type[Function] = type(f"{name.title().replace('_', '')}Function", (Function,), body)
    run = made.call

    @functools.wraps(forward)
    def operator(*args: Any, **kwargs: Any) -> Any:
        if kwargs or len(args) != len(parameters):
            args = _bound(name, parameters, defaults, args, kwargs)
        if not _recorded(args, places):
            return run(*args) if autocast and _is_any_autocast_enabled() else forward(*args)
        if not holomorphic and any(isinstance(each, Tensor) and each.is_complex() for each in args):
            raise NotImplementedError(f"bpkit.ops.{name}: complex tensors have no hand-written gradient")
        return run(*args)

    operator.reads = frozenset(each for rule in reads.values() for each in rule)  # type: ignore[attr-defined]
    operator.first = parameters[0]  # type: ignore[attr-defined]
    operator.__name__ = operator.__qualname__ = name
    operator.__module__ = sys._getframe(1).f_globals["__name__"]
    return operator


def _bound(
    name: str, parameters: list[str], defaults: list[Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, ...]:
    """Positional arguments from any legal call; faster than `inspect`'s (2 µs, and 15)."""
    unknown = kwargs.keys() - set(parameters[len(args) :])
    if unknown or len(args) > len(parameters):
        raise UnboundError(
            f"{name}() takes {', '.join(parameters)}; got {len(args)} by position and {kwargs}"
        )
    rest = [
        kwargs.get(key, default)
        for key, default in zip(parameters[len(args) :], defaults[len(args) :], strict=True)
    ]
    if inspect.Parameter.empty in rest:
        raise UnboundError(f"{name}() misses {parameters[len(args) + rest.index(inspect.Parameter.empty)]!r}")
    return (*args, *rest)


def _recorded(args: tuple[Any, ...], places: dict[str, int]) -> bool:
    """Whether autograd is to know of this call."""
    if _are_functorch_transforms_active():
        return True
    return torch.is_grad_enabled() and any(
        isinstance(args[place], Tensor) and args[place].requires_grad for place in places.values()
    )


def _conjugate(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.conj() if value.is_complex() else value
    return value.conjugate() if isinstance(value, complex) else value


def _like(gradient: Tensor, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    if gradient.shape != shape:
        gradient = gradient.sum_to_size(shape)
    if gradient.is_complex() and not dtype.is_complex:
        gradient = gradient.real
    return gradient.to(device, dtype)
