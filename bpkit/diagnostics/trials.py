"""Two ways to the gradients of a captured call: hand-written, and by autograd, which also runs in float64.

A module's reference is torch's class in place of the hand-written one, as long as it gives the same outputs.
Where there is none, each custom Function of the call is taken by itself: what came to it and what its
backward made of that, beside autograd through its own `forward`, run as a plain function.
"""

from __future__ import annotations

import copy
from typing import Any, Protocol

import torch
from torch import nn
from torch.autograd.function import BackwardCFunction

from bpkit.core.graph import nodes
from bpkit.core.module import Handwritten
from bpkit.diagnostics.capture import Call
from bpkit.diagnostics.hessian import twice_differentiable
from bpkit.diagnostics.repeat import Gradients, Run, Wide, near, precision, repeat
from bpkit.diagnostics.uses import NoReferenceError, Used, recorded
from bpkit.plugins.registry import registry
from bpkit.swap import revert, twins


class Trial(Protocol):
    """Two ways to the same gradients, by name.

    Attributes:
        name: as `Audit(exclude=[name])` takes it.
        label: what is tried, in words.
        target: the same in code, as `bpkit.verify` takes it.
        swapped: `bpkit.revert` puts torch's in its place.
        eps: relative distance of two numbers in the lowest precision that is computed in.
    """

    name: str
    label: str
    target: str
    swapped: bool
    eps: float

    def handwritten(self) -> Gradients: ...

    def reference(self) -> Gradients: ...

    def truth(self, noise: torch.Generator | None = None) -> Gradients:
        """The reference in float64, on inputs that are off by about `eps` if there is noise."""
        ...


class ModuleTrial:
    """The whole call against torch's class."""

    def __init__(self, call: Call) -> None:
        self.name = self.label = call.name
        self.target = "model" if call.name == "model" else f"model.get_submodule({call.name!r})"
        self.swapped = type(call.module) in twins().values()
        self._call = call
        self._reference = _by_torch(call.module)
        self.eps = precision(call)
        self._own = repeat(call, call.module)
        self._twin = _by_any_kernel(call, self._reference)
        for own, twin in zip(self._own.outputs, self._twin.outputs, strict=True):
            if not near(own, twin, min(0.1, 100 * self.eps)):
                raise NoReferenceError("gives other outputs than torch's class")

    def handwritten(self) -> Gradients:
        return self._own.gradients

    def reference(self) -> Gradients:
        return self._twin.gradients

    def truth(self, noise: torch.Generator | None = None) -> Gradients:
        return repeat(self._call, self._reference, Wide(self.eps, noise)).gradients


class FunctionTrial:
    """One custom Function of a call against autograd through its `forward`."""

    def __init__(self, call: Call, used: Used) -> None:
        self.name = self.target = used.function.__name__
        self.label = f"{self.name} in {call.name}"
        self.swapped, self._used = False, used
        self.eps = precision(call)

    def handwritten(self) -> Gradients:
        return self._used.gradients

    def reference(self) -> Gradients:
        found = self._used.by_autograd(None)
        if any(each.any() for each in self._used.gradients.values()) and not any(
            each.any() for each in found.values()
        ):  # the function is constant in pieces, and its backward stands for something else on purpose
            raise NoReferenceError("has a derivative of zero, and a backward that gives something instead")
        return found

    def truth(self, noise: torch.Generator | None = None) -> Gradients:
        return self._used.by_autograd(Wide(self.eps, noise))


def trials(call: Call) -> list[Trial]:
    """The call against torch's class; or, where there is none, each Function in it by itself.

    Raises:
        NoReferenceError: neither can be.
    """
    rules = {module for spec in registry().rules for module in spec.modules.values()}
    if any(not rules.isdisjoint(type(each).__mro__) for each in call.module.modules()):
        raise NoReferenceError("runs a learning rule, whose backward is another on purpose")
    if not call.functions:
        try:
            return [ModuleTrial(call)]
        except NoReferenceError as error:
            return _by_function(call, str(error))
    return _by_function(call, "has no torch class to be compared with")


def _by_function(call: Call, reason: str) -> list[Trial]:
    functions: set[Any] = set(call.functions)
    if not functions:
        graph: list[Any] = list(nodes(repeat(call, call.module, keep=True).outputs))
        graph = [node for node in graph if isinstance(node, BackwardCFunction)]
        functions = {node._forward_cls for node in graph}
    with recorded(functions) as used:

        def watch() -> None:
            for each in used:
                each.watch()

        repeat(call, call.module, ready=watch)
    lived = [each for each in used if each.gradients]
    if not lived:
        raise NoReferenceError(f"{reason}, and uses no Function that could be taken by itself")
    return [FunctionTrial(call, each) for each in lived]


def _by_any_kernel(call: Call, reference: nn.Module) -> Run:
    """The reference's run, where a vendor's kernel fails (oneDNN's LSTM in bfloat16) by torch's own."""
    try:
        return repeat(call, reference)
    except RuntimeError:
        with twice_differentiable():
            return repeat(call, reference)


def _by_torch(module: nn.Module) -> nn.Module:
    """A copy in which torch's classes stand for the hand-written ones and for subclasses of those."""
    known = {handwritten: reference for reference, handwritten in twins().items()}
    reverted = revert(copy.deepcopy(module))
    for each in reverted.modules():
        kind = type(each)
        if issubclass(kind, Handwritten):
            base = next((base for base in kind.__mro__ if base in known), None)
            if base is None:
                raise NoReferenceError("has no torch class to be compared with")
            each.__class__ = known[base]
    return reverted
