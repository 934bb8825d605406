"""Second derivatives against numerical ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bpkit.verification.case import Case, Forward, both, cotangents
from bpkit.verification.check import Check, Failed
from bpkit.verification.compare import difference
from bpkit.verification.numeric import Numeric, function_of, require_numeric

# What a backward that does without a graph says when one is wanted of it: nothing wrong is returned.
REFUSALS = ("once_differentiable", "Can't call numpy()")


def run(case: Case) -> None:
    """The gradient, as a function of inputs and grad_output, is put through gradcheck itself."""
    case.need_gradient()
    case.need_float64()

    def measure(forward: Forward) -> None:
        function, inputs = function_of(case.run_as(forward))
        outputs = function(*inputs)
        grad_outputs = [grad.requires_grad_() for grad in cotangents(outputs)]
        plain = torch.autograd.grad(outputs, inputs, grad_outputs, allow_unused=True)
        gradient = _gradient_of(function, len(inputs))
        _require_same(case, gradient(*inputs, *grad_outputs), [each for each in plain if each is not None])
        run_twice(gradient(*inputs, *grad_outputs))
        require_numeric(gradient, (*inputs, *grad_outputs))

    both(case, measure, refusals=REFUSALS)


def _require_same(case: Case, graphed: Sequence[Tensor], plain: Sequence[Tensor]) -> None:
    """A backward may take another path where a graph of it is wanted; it must lead to the same gradient."""
    for a, b in zip(graphed, plain, strict=True):
        wrong = difference("a gradient under create_graph", a, b, case.rtol)
        if wrong:
            raise Failed(wrong)


def run_twice(gradients: tuple[Tensor, ...]) -> None:
    """A full backward through the gradients: a `once_differentiable` raises in no other way."""
    roots = [each for each in gradients if each.requires_grad]
    if roots:
        torch.autograd.backward(roots, cotangents(roots), retain_graph=True)


def _gradient_of(function: Numeric, arity: int) -> Numeric:
    """`(*inputs, *grad_outputs) -> gradients`, those there are."""

    def gradient(*given: Tensor) -> tuple[Tensor, ...]:
        inputs, grad_outputs = given[:arity], given[arity:]
        gradients = torch.autograd.grad(
            function(*inputs), inputs, grad_outputs, create_graph=True, allow_unused=True
        )
        return tuple(each for each in gradients if each is not None)

    return gradient


CHECK = Check(
    name="gradgradcheck",
    harm="Gradient penalties, Hessian products and meta-learning through this get wrong numbers, silently.",
    remedy="Write backward as differentiable algebra on ctx.saved_tensors (no detach, .data or numpy, no "
    "intermediate kept from forward), or mark it once_differentiable so that it says so.",
    run=run,
    subject=Case,
)
