"""Target and reference side by side: the same values, the same output gradients, in the target's dtype."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bpkit.verification.case import Case, Evaluation, Forward, backward, call, cotangents
from bpkit.verification.check import Failed
from bpkit.verification.compare import require_equal
from bpkit.verification.precision import require_as_exact
from bpkit.verification.variants import LARGEST


@dataclass(frozen=True)
class Expectation:
    """What the reference makes of a case in float64.

    Attributes:
        evaluation: its outputs and gradients.
        grad_outputs: what was handed to its backward, one an output.
        carries: which outputs carry a gradient.
    """

    evaluation: Evaluation
    grad_outputs: tuple[Tensor, ...]
    carries: tuple[bool, ...]

    @property
    def finite(self) -> bool:
        """No NaN and no infinity in it."""
        return all(bool(tensor.isfinite().all()) for tensor in self.tensors())

    def tensors(self) -> Iterator[Tensor]:
        """Outputs, and the gradients there are."""
        yield from self.evaluation.outputs
        yield from (each for each in self.evaluation.gradients.values() if each is not None)


def expectation(case: Case) -> Expectation:
    """The reference's run; its own exceptions come out as they are."""
    reference = case.need_reference()
    values = case.fresh(dtype=torch.float64)
    outputs = call(reference, values)
    grad_outputs = tuple(grad.to(case.dtype).to(grad.dtype) for grad in cotangents(outputs))
    carries = tuple(output.requires_grad for output in outputs)
    detached = tuple(output.detach().clone() for output in outputs)
    return Expectation(Evaluation(detached, backward(outputs, values, grad_outputs)), grad_outputs, carries)


def accepted(case: Case) -> Expectation | None:
    """The reference's run on values nobody gave; None where it refuses them, or makes too much of them."""
    try:
        with torch.no_grad():
            outputs = call(case.need_reference(), case.fresh(required=(), dtype=torch.float64))
        if sum(output.numel() for output in outputs) > LARGEST:
            return None
        return expectation(case)
    except Exception:
        return None


def require_parity(
    case: Case,
    expected: Expectation,
    *,
    where: str = "",
    usual: Expectation | None = None,
    rtol: float | None = None,
) -> Evaluation:
    """Run the target, and fail where it is not what the reference is.

    In float64 that is a relative error of `rtol`; a target of lower precision may be as far from the
    float64 truth as the reference is in that precision, times a factor.

    Args:
        case: what is run.
        expected: `expectation(case)`.
        where: under what circumstances, ahead of the sentence.
        usual: of ordinary values, whose sizes are the least scale of the comparison.
        rtol: in place of the case's own.

    Returns:
        The target's run.

    Raises:
        Failed: other numbers; outputs of another number or shape, or without the gradient that the
            reference's carry.
    """
    actual = answer(case, expected, where)
    if case.dtype is torch.float64:
        require_equal(
            case,
            actual,
            expected.evaluation,
            case.rtol if rtol is None else rtol,
            where=where,
            usual=None if usual is None else usual.evaluation,
        )
        return actual
    try:
        twin = _run(case, case.need_reference(), expected, where)
    except Exception:  # it has no kernel for that dtype: one rounding of the truth stands in for it
        twin = Evaluation(
            tuple(each.to(case.dtype) for each in expected.evaluation.outputs),
            {i: g if g is None else g.to(case.dtype) for i, g in expected.evaluation.gradients.items()},
        )
    require_as_exact(case, actual, twin, expected.evaluation, case.dtype, where)
    return actual


def answer(case: Case, expected: Expectation, where: str = "") -> Evaluation:
    """The target's run, with the output gradients that the reference had; fails as `require_parity`."""
    return _run(case, case.forward, expected, where)


def _run(case: Case, forward: Forward, expected: Expectation, where: str) -> Evaluation:
    values = case.fresh()
    outputs = call(forward, values)
    shapes = [list(output.shape) for output in expected.evaluation.outputs]
    if [list(output.shape) for output in outputs] != shapes:
        raise Failed(f"{where}outputs of shape {[list(output.shape) for output in outputs]}, not {shapes}")
    for index, (output, carries) in enumerate(zip(outputs, expected.carries, strict=True)):
        if carries and not output.requires_grad:
            raise Failed(f"{where}output {index} carries no gradient, and the reference's does")
    grad_outputs = [
        (grad if carries else torch.zeros_like(grad)).to(output.dtype)
        for grad, carries, output in zip(expected.grad_outputs, expected.carries, outputs, strict=True)
    ]
    detached = tuple(output.detach().clone() for output in outputs)
    return Evaluation(detached, backward(outputs, values, grad_outputs))
