"""Pointwise losses: one rule for each argument, written once, for every loss that is a sum of single terms.

    l[k] = f(x[k], t[k], …)        ∂L/∂x[k] = g ∂f/∂x[k],   g = δ / m        k: any position,  δ = ∂L/∂L

m is the number of terms for a mean, the batch for a `batchmean`, and 1 for a sum; without a reduction δ
is a tensor of the terms' shape and m = 1. An argument that was broadcast has its gradient summed back.

`pointwise` makes the Function, the functional, the module and its spec from a line for f and a line for
each gradient. `pointwise.py` is the table. The names of a rule's parameters say what it reads, and that
alone is kept for backward, and only where the gradient is wanted:

    g               δ / m, with δ's shape
    input, target…  an argument of the loss, or a setting, by its name there
    kept            what the line `kept` gives: a mask or a sign that no gradient flows through, in a
                    byte an element where the arguments would take eight

Source: the chain rule; each loss has its own.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bpkit import ops
from bpkit.core.function import CastPolicy, Function
from bpkit.core.fuse import formula
from bpkit.core.holomorphic import conjugates
from bpkit.core.module import Handwritten
from bpkit.core.precision import widen
from bpkit.core.spec import LossSpec, Sample, Samples, nbytes, randn
from bpkit.losses.reduction import BATCHMEAN, MEAN, NONE, code, refuse_gradient

FP32: Mapping[str, CastPolicy] = {"cpu": "fp32", "cuda": "fp32"}
Rule = Callable[..., Tensor]


def pointwise(
    name: str,
    *,
    reference: type[nn.Module],
    twin: Callable[..., Tensor],
    forward: Callable[..., Tensor],
    gradients: Mapping[str, Rule],
    samples: Callable[[], Iterable[Sample]],
    kept: Callable[..., Tensor] | None = None,
    prepare: Callable[..., tuple[Any, ...]] | None = None,
    of: tuple[str, ...] = (),
    weighted_mean: bool = True,
    refuses: str = "",
    warns: Mapping[str, str] | None = None,
    autocast: Mapping[str, Any] | None = FP32,
    saves: str = "input and target",
    summary: str = "",
) -> Any:
    """A loss module class with hand-written gradients.

    Args:
        name: of the spec.
        reference: the torch class that it stands in for; its `forward` names the tensors, in order.
        twin: torch's functional; its signature is taken, and what is neither a tensor nor a way to
            reduce is a setting, and an attribute of the module.
        forward: `(*tensors, *settings, reduction) -> the reduced loss`, by torch's number for a reduction.
        gradients: by tensor, the rule for its gradient; a tensor without one gets none.
        samples: to prove it on.
        kept: `(*tensors, *settings) -> ` what rules may read as `kept`.
        prepare: `(*tensors, *settings)` checked, and the tensors brought together, as torch does.
        of: names of the tensors that `prepare` gives, where those are others: a difference, say, which is
            then kept in place of both its terms. `forward`, `kept` and the rules are of these.
        weighted_mean: whether a mean with `weight` is over the weights, or else over the terms.
        refuses: a tensor that torch refuses to differentiate by.
        warns: by reduction, what torch warns of.
        autocast: see `Function.autocast`.
        saves: in words, what is kept for backward.
        summary: a line about it.

    Returns:
        The module class, with the plain function as `functional` and the `LossSpec` as `SPEC`.
    """
    tensors = tuple(inspect.signature(twin).parameters)[
        : len(inspect.signature(reference.forward).parameters) - 1
    ]
    settings = tuple(
        each
        for each in inspect.signature(twin).parameters
        if each not in (*tensors, "size_average", "reduce", "reduction", "weight")
    )
    of = of or tensors
    function = _function(name, (*of, *settings), len(of), forward, gradients, kept, autocast or {})

    def loss(
        given: tuple[Any, ...], reduction: str, size_average: Any, reduce: Any, weight: Tensor | None
    ) -> Tensor:
        if refuses:
            refuse_gradient(twin.__name__, refuses, given[tensors.index(refuses)])
        if warns and reduction in warns and size_average is None and reduce is None:
            _warn(warns[reduction])
        reduced = _code(reduction, size_average, reduce)
        shape = given[0].shape
        if torch.compiler.is_compiling() and given[0] is given[1]:  # Dynamo takes no tensor twice
            given = (given[0].view_as(given[0]), *given[1:])
        if prepare is not None:
            given = prepare(*given)
        if weight is None:
            return function.call(*given, reduced)
        if weight.size() != shape:
            raise ValueError("Weights and input must have the same size.")
        terms = ops.mul(function.call(*given, NONE), weight)
        if reduced == NONE:
            return terms
        if reduced == MEAN and not weighted_mean:
            return ops.mean(terms)
        total = ops.sum(terms)
        return ops.div(total, ops.sum(weight)) if reduced == MEAN else total

    functional = _functional(twin, tensors, settings, loss)
    module: Any = type(
        reference.__name__,
        (Handwritten, reference),
        {
            "forward": _forward(reference, functional, settings),
            "functional": staticmethod(functional),
            "__module__": sys._getframe(1).f_globals["__name__"],  # where pickle will look for it
            "__doc__": f"`torch.nn.{reference.__name__}` with a hand-written backward.",
        },
    )
    module.SPEC = LossSpec(
        name=name,
        module=module,
        reference=reference,
        samples=samples,
        saves=saves,
        saved_bytes=lambda module, inputs, output: (
            nbytes(*inputs) * len(of) // len(tensors) + (inputs[0].numel() if kept else 0)
        ),
        aliases=(reference.__name__, twin.__name__),
        summary=summary,
    )
    return module


def _code(reduction: str, size_average: bool | None, reduce: bool | None) -> int:
    if reduction == "batchmean" and size_average is None and reduce is None:
        return BATCHMEAN
    return code(reduction, size_average, reduce)


def _function(
    name: str,
    parameters: tuple[str, ...],
    tensors: int,
    forward: Callable[..., Tensor],
    gradients: Mapping[str, Rule],
    kept: Callable[..., Tensor] | None,
    autocast: Mapping[str, Any],
) -> type[Function]:
    """The Function of one loss: `(*tensors, *settings, reduction) -> [] or the terms' shape`."""
    places = {parameters.index(argument): argument for argument in gradients}
    reads = {argument: tuple(inspect.signature(rule).parameters) for argument, rule in gradients.items()}
    rules = {argument: formula(_rounded_once(rule)) for argument, rule in gradients.items()}

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *values, reduction = inputs
        known = dict(zip(parameters, values, strict=True))
        wanted = [argument for place, argument in places.items() if ctx.needs_input_grad[place]]
        read = {each for argument in wanted for each in reads[argument]}
        ctx.likes = {argument: (known[argument].shape, known[argument].dtype) for argument in wanted}
        ctx.terms = torch.broadcast_shapes(*(each.shape for each in values[:tensors]))
        ctx.share = ctx.terms.numel() if reduction == MEAN else 1
        if reduction == BATCHMEAN and values[0].dim():
            ctx.share = values[0].shape[0]
        ctx.known = {key: known[key] for key in parameters[tensors:] if key in read}
        ctx.names = [key for key in parameters[:tensors] if key in read]
        saved = [known[key] for key in ctx.names]
        if kept is not None and "kept" in read:
            ctx.names.append("kept")
            saved.append(kept(*values))
        ctx.save_for_backward(*saved)

    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        known = ctx.known | dict(zip(ctx.names, conjugates(ctx.saved_tensors), strict=True))
        # A tensor: a number of terms would be compiled into the formula.
        known["g"] = widen(grad_output) / max(1, ctx.share) if ctx.share != 1 else grad_output
        found: list[Tensor | None] = [None] * (len(parameters) + 1)
        for place, argument in places.items():
            if argument in ctx.likes:
                shape, dtype = ctx.likes[argument]
                whole = shape == ctx.terms
                gradient = rules[argument](
                    dtype if whole else None, *(known[each] for each in reads[argument])
                )
                if gradient.shape != ctx.terms:
                    gradient = gradient.expand(ctx.terms)
                found[place] = gradient if whole else gradient.sum_to_size(shape).to(dtype)
        return tuple(found)

    body = {
        "autocast": autocast,
        "forward": staticmethod(forward),
        "setup_context": staticmethod(setup_context),
        "backward": staticmethod(backward),
        "__doc__": f"{name}, term by term.",
        "__module__": forward.__module__,
    }
    return type(f"{name.title().replace('_', '')}Function", (Function,), body)


def _rounded_once(rule: Rule) -> Rule:
    """`rule` on widened tensors, its result in `dtype` if one is given."""

    def rounded(dtype: torch.dtype | None, *args: Any) -> Tensor:
        gradient = rule(*(widen(arg) if isinstance(arg, Tensor) else arg for arg in args))
        if dtype is None or gradient.dtype is dtype:
            return gradient
        return (gradient.real if gradient.is_complex() and not dtype.is_complex else gradient).to(dtype)

    return rounded


def _functional(
    twin: Callable[..., Tensor],
    tensors: tuple[str, ...],
    settings: tuple[str, ...],
    loss: Callable[..., Tensor],
) -> Callable[..., Tensor]:
    """The plain function, with the signature of `twin` written out: Python checks a call in its own words."""
    signature = inspect.signature(twin)
    parameters = [each.replace(annotation=inspect.Parameter.empty) for each in signature.parameters.values()]
    plain = str(inspect.Signature(parameters))[1:-1]
    legacy = ", ".join(
        key if key in signature.parameters else "None" for key in ("size_average", "reduce", "weight")
    )
    source = f"lambda loss: lambda {plain}: loss(({', '.join(tensors + settings)},), reduction, {legacy})"
    functional: Callable[..., Tensor] = eval(source)(loss)  # in a closure: Dynamo looks a global up by module
    functional.__name__ = functional.__qualname__ = twin.__name__
    functional.__doc__ = f"`torch.nn.functional.{twin.__name__}` with a hand-written backward."
    return functional


def _forward(
    reference: type[nn.Module], functional: Callable[..., Tensor], settings: tuple[str, ...]
) -> Callable[..., Tensor]:
    """The module's forward: its tensors by torch's names, its settings from its attributes."""
    _, *tensors = inspect.signature(reference.forward).parameters
    given = [*tensors, *(f"{key}=self.{key}" for key in (*settings, "reduction"))]
    source = f"lambda functional: lambda self, {', '.join(tensors)}: functional({', '.join(given)})"
    forward: Callable[..., Tensor] = eval(source)(functional)
    forward.__name__ = "forward"
    forward.__qualname__ = f"{reference.__name__}.forward"
    return forward


def _warn(message: str) -> None:
    if not torch.compiler.is_compiling():  # there a warning breaks the graph
        warnings.warn(message, stacklevel=4)


def same_size(input: Tensor, target: Tensor, *settings: Any) -> tuple[Any, ...]:
    """The two tensors broadcast, with torch's warning where they had to be."""
    if target.size() != input.size():
        _warn(
            f"Using a target size ({target.size()}) that is different to the input size ({input.size()}). "
            "This will likely lead to incorrect results due to broadcasting. "
            "Please ensure they have the same size."
        )
    return (*torch.broadcast_tensors(input, target), *settings)


def cases(inputs: Callable[[], tuple[Tensor, ...]], *settings: Mapping[str, Any]) -> Samples:
    """The inputs in each reduction, and with each of `settings`."""

    def samples() -> Iterable[Sample]:
        for kwargs in ({}, {"reduction": "sum"}, {"reduction": "none"}, *settings):
            label = ", ".join(f"{key}={value}" for key, value in kwargs.items())
            yield Sample(kwargs=kwargs, inputs=inputs(), label=label)

    return samples


def pair() -> tuple[Tensor, ...]:
    """An input and a target, to try a loss on."""
    return randn(4, 3), randn(4, 3, seed=1)
