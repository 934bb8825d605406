"""Elementwise layers: one rule each, written once, for every function y = f(x) of single elements.

    y[k] = f(x[k])        ∂L/∂x[k] = δ[k] f'(x[k])        k: any position,  δ = ∂L/∂y

`elementwise` makes the Function, the functional, the module and its spec from a line for f, a line
for δ f', and the word that says which of x and y the second line reads. `activations.py` is the table.
A new activation, in five lines:

    Squareplus = elementwise(
        "Squareplus",
        forward=lambda x: (x + torch.sqrt(x * x + 4)) / 2,
        backward=lambda grad_output, x: grad_output * (1 + x / torch.sqrt(x * x + 4)) / 2,
    )

Saved: x, or y where torch's twin keeps its output (an in-place user of x relies on it).
Source: the chain rule; Rumelhart, Hinton & Williams, 1986, eq. (6).
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bpkit.core.function import Function
from bpkit.core.fuse import formula
from bpkit.core.inplace import keep, overwrite, require_writable
from bpkit.core.module import Handwritten
from bpkit.core.precision import in_float32
from bpkit.core.spec import LayerSpec, Sample, nbytes, randn

REQUIRED: Any = inspect.Parameter.empty


def elementwise(
    name: str,
    *,
    functional: str = "",
    forward: Callable[..., Tensor],
    backward: Callable[..., Tensor],
    saves: Literal["input", "output"] = "input",
    reference: type[nn.Module] | None = None,
    settings: Mapping[str, Any] | None = None,
    inplace: bool = False,
    from_output: Callable[..., bool] | None = None,
    keyword_only: bool = False,
    tried: Iterable[Mapping[str, Any]] = ({},),
    autocast: Mapping[str, Any] | None = None,
) -> Any:
    """A module class with a hand-written elementwise backward.

    Args:
        name: of the class.
        functional: name of the plain function, the class's in lower case if left out.
        forward: `(x, *settings) -> y`.
        backward: `(grad_output, saved, *settings) -> grad_input`, tensor algebra on x or y. In bfloat16
            and float16 it is computed in float32 and rounded once.
        saves: whether `saved` is the `"input"` x or the `"output"` y.
        reference: the torch class that it stands in for, if there is one.
        settings: the functional's further arguments with their defaults (`REQUIRED`: none); attributes of
            the module.
        inplace: whether functional and module have torch's `inplace` argument; `forward` then takes it last.
        from_output: `(*settings) -> bool`, where the backward line may as well read y for x: an in-place
            call keeps no copy of x then.
        keyword_only: whether the functional takes its settings by keyword alone.
        tried: constructor arguments to prove it with.
        autocast: see `Function.autocast`.

    Returns:
        The module class, with the plain function as `functional`, the one that is always in place as
        `functional_`, and the `LayerSpec` as `SPEC`.
    """
    defaults = dict(settings or {})
    functional = functional or name.lower()
    policies = autocast or {}
    run = _function(name, forward, backward, saves, policies).call
    rewrite = _function(name, forward, backward, "output", policies, True).call if inplace else None
    if saves == "output":
        from_output = lambda *values: True  # noqa: E731
    base = reference or nn.Module

    def evaluate(input: Tensor, values: tuple[Any, ...], into_input: bool) -> Tensor:
        if not into_input:
            return run(input, *values)
        if (
            rewrite is not None
            and from_output is not None
            and from_output(*values)
            and not torch.compiler.is_compiling()  # see `overwrite`
        ):
            require_writable(input)
            return rewrite(input, *values)
        return overwrite(input, run(keep(input), *values))

    class Elementwise(Handwritten, base):  # type: ignore[misc, valid-type]
        def forward(self, input: Tensor) -> Tensor:
            values = tuple(getattr(self, setting) for setting in defaults)
            return evaluate(input, values, inplace and self.inplace)

    Elementwise.__name__ = Elementwise.__qualname__ = name
    Elementwise.__module__ = sys._getframe(1).f_globals["__name__"]  # where pickle will look for it
    Elementwise.__doc__ = f"`torch.nn.{name}` with a hand-written backward." if reference else name
    Elementwise.functional = staticmethod(
        _functional(functional, evaluate, defaults, inplace=inplace, keyword_only=keyword_only)
    )
    Elementwise.functional_ = staticmethod(
        _functional(functional + "_", lambda input, values, _: evaluate(input, values, True), defaults)
    )
    Elementwise.SPEC = LayerSpec(
        name=name,
        module=Elementwise,
        reference=reference,
        samples=lambda: _samples(tried),
        saves=saves,
        saved_bytes=lambda module, inputs, output: nbytes(output),
        aliases=(functional,),
        summary="elementwise",
    )
    return Elementwise


def _function(
    name: str,
    forward: Callable[..., Tensor],
    backward: Callable[..., Tensor],
    saves: str,
    autocast: Mapping[str, Any],
    into_input: bool = False,
) -> type[Function]:
    """The Function of one activation; a class of its own, so that the graph shows its name.

    With `into_input` it writes y over x.
    """
    rule = formula(in_float32(backward))

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        if into_input:
            ctx.mark_dirty(inputs[0])
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(inputs[0] if saves == "input" else output)
        ctx.settings = inputs[1:]

    def gradient(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.needs_input_grad[0]:
            return (None, *(None for _ in ctx.settings))
        (saved,) = ctx.saved_tensors
        grad_input = rule(grad_output, saved, *ctx.settings)
        if torch.is_grad_enabled() and saved.requires_grad:
            # Where f'' is zero the rule may not read `saved` in a way that a graph shows: torch's second
            # derivative is zeros then, not an error.
            grad_input = torch.where(grad_input.new_zeros((), dtype=torch.bool), saved, grad_input)
        return (grad_input, *(None for _ in ctx.settings))

    def written(input: Tensor, *settings: Any) -> Tensor:
        forward(input, *settings, True)
        return input

    def mapped(
        info: Any, in_dims: tuple[int | None, ...], input: Tensor, *settings: Any
    ) -> tuple[Tensor, int | None]:
        return made.apply(input, *settings), in_dims[0]

    body = {
        "autocast": autocast,
        "forward": staticmethod(
            written if into_input else lambda input, *settings: forward(input, *settings)
        ),
        "setup_context": staticmethod(setup_context),
        "backward": staticmethod(gradient),
        "__doc__": f"{name}, elementwise; saves its {saves}.",
        "__module__": forward.__module__,
    }
    if into_input:
        body["vmap"] = staticmethod(mapped)
    made: type[Function] = type(f"{name}Function", (Function,), body)
    return made


def _functional(
    name: str,
    evaluate: Callable[[Tensor, tuple[Any, ...], bool], Tensor],
    defaults: Mapping[str, Any],
    *,
    inplace: bool = False,
    keyword_only: bool = False,
) -> Callable[..., Tensor]:
    """The plain function, with torch's arguments and defaults.

    Its signature is in the table, so it is written out and evaluated, as `dataclasses` does: Python then
    checks a call in its own words, and no dictionaries are merged on every one.
    """
    values = {**defaults, **({"inplace": False} if inplace else {})}
    star = "*, " if keyword_only and values else ""
    parameters = star + ", ".join(
        key if value is REQUIRED else f"{key}={value!r}" for key, value in values.items()
    )
    settings = "".join(f"{key}, " for key in defaults)
    body = f"evaluate(input, ({settings}), {'inplace' if inplace else False})"
    # `evaluate` as a closure: Dynamo would look for a global of it in this module.
    made = eval(f"lambda evaluate: lambda input, {parameters}: {body}", {"__name__": __name__})
    functional: Callable[..., Tensor] = made(evaluate)
    functional.__name__ = functional.__qualname__ = name
    functional.__doc__ = f"`{name}`, element by element, with a hand-written backward."
    return functional


def _samples(tried: Iterable[Mapping[str, Any]]) -> Iterable[Sample]:
    """Both tails without the kinks at whole numbers, and an ordinary batch, for each setting tried."""
    tails = torch.linspace(-6.1, 6.1, 24, dtype=torch.float64).reshape(4, 6)
    for kwargs in tried:
        label = ", ".join(f"{key}={value}" for key, value in kwargs.items())
        yield Sample(kwargs=kwargs, inputs=(tails,), label=label)
    yield Sample(kwargs=next(iter(tried)), inputs=(randn(2, 3, 2),), label="three axes")
