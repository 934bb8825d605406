"""Gradients against central differences, and the worst pair of numbers side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError

from bpkit.verification.case import Case, call, cotangents
from bpkit.verification.check import Failed

Numeric = Callable[..., tuple[Tensor, ...]]

# A step of 1e-6 leaves about 2e-10 of the value and 1e-13 of its third derivative in float64; torch's
# own defaults (1e-5 and 1e-3) would let a gradient pass that is 0.1 % wrong.
STEP, ATOL, RTOL = 1e-6, 1e-7, 1e-5


def function_of(case: Case) -> tuple[Numeric, tuple[Tensor, ...]]:
    """The case as a function of its differentiable values alone, and those values."""
    carrying = [output.requires_grad for output in call(case.forward, case.fresh())]

    def function(*varied: Tensor) -> tuple[Tensor, ...]:
        given = case.fresh(required=())
        for position, value in zip(case.differentiable, varied, strict=True):
            given[position] = value
        outputs = call(case.forward, given)
        return tuple(output for output, carries in zip(outputs, carrying, strict=True) if carries)

    values = case.fresh()
    return function, tuple(
        values[position].detach().contiguous().requires_grad_() for position in case.differentiable
    )


def require_numeric(function: Numeric, inputs: Sequence[Tensor]) -> None:
    """Torch's slow gradcheck, undefined gradients included, to tolerances that suit float64.

    Raises:
        Failed: with the sentence of gradcheck's, and the numbers that are furthest apart.
    """
    size = _size(function(*inputs))
    try:
        torch.autograd.gradcheck(
            function,
            tuple(inputs),
            eps=STEP,
            atol=ATOL * size,
            rtol=RTOL,
            fast_mode=False,
            check_undefined_grad=True,
        )
    except GradcheckError as error:
        sentence = str(error).strip().splitlines()[0].rstrip(",. ")
        raise Failed(f"{sentence}: {_worst(function, inputs)}") from error


# Slopes to the left and to the right that differ by more are those of a kink, and no derivative is there.
KINK = 1e-4


def require_directional(function: Numeric, inputs: Sequence[Tensor]) -> None:
    """One combination of the outputs along one direction of all inputs: cheap at any size.

    Raises:
        Failed: the backward's derivative beside the difference quotient.
    """
    outputs = function(*inputs)
    weights, direction = cotangents(outputs), cotangents(inputs, seed=3)
    gradients = torch.autograd.grad(outputs, inputs, weights, allow_unused=True)
    parts = [g * v for g, v in zip(gradients, direction, strict=True) if g is not None]
    analytic = sum(float(part.sum()) for part in parts)

    def along(step: float) -> float:
        moved = [x.detach() + step * v for x, v in zip(inputs, direction, strict=True)]
        values = function(*(each.requires_grad_() for each in moved))
        return sum(float((y.detach() * w).sum()) for y, w in zip(values, weights, strict=True))

    middle, text = along(0.0), ""
    for step in (STEP, STEP / 8):  # what crosses a kink within one of them may not within the other
        right, left = (along(step) - middle) / step, (middle - along(-step)) / step
        numeric = (right + left) / 2
        size = max(1.0, abs(middle), *(float(part.square().sum().sqrt()) for part in parts))
        if abs(right - left) > KINK * size or abs(analytic - numeric) <= 10 * RTOL * size:
            return
        text = (
            f"along one direction the backward gives {analytic:.10g}, the difference quotient {numeric:.10g}"
        )
    raise Failed(text)


def _worst(function: Numeric, inputs: Sequence[Tensor]) -> str:
    """The element of the Jacobian where backward and central difference are furthest apart."""
    outputs = function(*inputs)
    gap, text = -1.0, "the Jacobians agree"
    for i, value in enumerate(inputs):
        columns = [_column(function, inputs, i, k) for k in range(value.numel())]
        for j, output in enumerate(outputs):
            for row, element in enumerate(output.reshape(-1)):
                (gradient,) = torch.autograd.grad(element, value, retain_graph=True, allow_unused=True)
                for k, column in enumerate(columns):
                    numeric = float(column[j][row])
                    analytic = 0.0 if gradient is None else float(gradient.reshape(-1)[k])
                    if not abs(analytic - numeric) <= gap:
                        gap = abs(analytic - numeric)
                        text = f"the backward gives {analytic:.10g}, the difference quotient {numeric:.10g}"
                        if math.isnan(gap):
                            return text
    return text


def _column(function: Numeric, inputs: Sequence[Tensor], i: int, k: int) -> list[Tensor]:
    """The difference quotient of every output along element `k` of input `i`."""
    ends = []
    for sign in (1, -1):
        moved = [each.detach().clone().requires_grad_() for each in inputs]
        with torch.no_grad():
            moved[i].view(-1)[k] += sign * STEP
        ends.append([output.detach().reshape(-1) for output in function(*moved)])
    return [(up - down) / (2 * STEP) for up, down in zip(*ends, strict=True)]


def _size(outputs: Sequence[Tensor]) -> float:
    return max([1.0, *(float(output.detach().abs().max()) for output in outputs if output.numel())])
