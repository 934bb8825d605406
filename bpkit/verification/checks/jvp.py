"""Forward mode: the Jacobian times a vector."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from bpkit.verification.case import Case, Forward, backward, call, cotangents
from bpkit.verification.check import Check, Failed, Skipped, one_line
from bpkit.verification.compare import difference

# What torch says of a Function that has no jvp, and of an operation that has no forward formula.
REFUSALS = ("forward mode AD", "forward AD")


def run(case: Case) -> str:
    """For tangents of all inputs and of each alone: u·(J v) is the backward's (Jᵀu)·v, and J v the twin's."""
    case.need_gradient()
    remark = _compare(case, case.differentiable)
    for position in case.differentiable if len(case.differentiable) > 1 else ():
        try:
            _compare(case, (position,))
        except Failed as failure:
            raise Failed(f"with a tangent of {case.names[position]} alone, {failure}") from failure
        except Skipped:  # that one has no influence on an output
            continue
    return remark


def _compare(case: Case, along: Sequence[int]) -> str:
    try:
        actual = _tangents(case, case.forward, along)
    except Exception as error:
        if not any(words in str(error) for words in REFUSALS):
            raise Failed(f"forward mode raises: {one_line(error)}") from error
        raise Skipped("it has no forward mode, and says so") from error
    if not any(each is not None for each in actual):
        raise Skipped("no output carries a tangent")
    _require_adjoint(case, actual, along)
    if case.reference is None:
        return "the backward's adjoint"
    try:
        expected = _tangents(case, case.reference, along)
    except Exception as error:
        return f"the backward's adjoint (the reference has no forward mode: {one_line(error)})"
    for index, (a, b) in enumerate(zip(actual, expected, strict=True)):
        wrong = difference(f"the tangent of output {index}", a, b, case.rtol)
        if wrong:
            raise Failed(wrong)
    return "the backward's adjoint, and the reference's"


def _tangents(case: Case, forward: Forward, along: Sequence[int]) -> list[Tensor | None]:
    values = case.fresh(required=())
    tangents = cotangents([values[position] for position in along], seed=3)
    with forward_ad.dual_level():
        for position, tangent in zip(along, tangents, strict=True):
            values[position] = forward_ad.make_dual(values[position], tangent)
        outputs = call(forward, values)
        return [forward_ad.unpack_dual(output).tangent for output in outputs]


def _require_adjoint(case: Case, tangents: list[Tensor | None], along: Sequence[int]) -> None:
    values = case.fresh()
    outputs = call(case.forward, values)
    u = cotangents(outputs)
    gradients = backward(outputs, values, u)
    v = cotangents([values[position] for position in along], seed=3)
    forwards = [(a * b).sum() for a, b in zip(u, tangents, strict=True) if b is not None]
    backwards = [
        (gradient * tangent).sum()
        for position, tangent in zip(along, v, strict=True)
        if (gradient := gradients[position]) is not None
    ]
    sizes = sum(float(each.abs()) for each in (*forwards, *backwards))
    wrong = difference(
        "u·(J v) of forward mode",
        torch.stack(forwards).sum(),
        torch.stack(backwards).sum() if backwards else None,
        100 * case.rtol,
        scale=sizes,
    )
    if wrong:
        raise Failed(f"{wrong}, which is (Jᵀu)·v of the backward")


CHECK = Check(
    name="jvp",
    harm="torch.func.jvp, jacfwd and forward-over-reverse Hessians give another derivative than backward.",
    remedy="Derive jvp from the Jacobian that backward has; tangents come in forward's order of arguments.",
    run=run,
    subject=Case,
)
