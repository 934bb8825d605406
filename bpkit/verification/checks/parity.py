"""Values and gradients against the reference, in float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bpkit.verification.case import Case, Evaluation, backward, call, cotangents
from bpkit.verification.check import Check, Failed
from bpkit.verification.compare import require_equal
from bpkit.verification.variants import scaled


def run(case: Case) -> None:
    """On the values given, then scaled into both tails, where the reference accepts those."""
    expected, actual = _together(case)
    require_equal(case, actual, expected, case.rtol)
    for where, varied in scaled(case):
        try:
            wanted, found = _together(varied)
        except Exception:  # outside of a domain: refusing values the user never gave is a limit, no mistake
            continue
        if _finite(wanted):
            require_equal(varied, found, wanted, case.rtol, where=where, usual=expected)


def _together(case: Case) -> tuple[Evaluation, Evaluation]:
    """The reference's evaluation and the target's, for one gradient of what both differentiate."""
    twin_values, values = case.fresh(), case.fresh()
    twin_outputs, outputs = call(case.need_reference(), twin_values), call(case.forward, values)
    if [output.shape for output in outputs] != [output.shape for output in twin_outputs]:
        shapes = [list(output.shape) for output in outputs]
        raise Failed(f"outputs of shape {shapes}, not {[list(output.shape) for output in twin_outputs]}")
    for index, (output, twin) in enumerate(zip(outputs, twin_outputs, strict=True)):
        if twin.requires_grad and not output.requires_grad:
            raise Failed(f"output {index} carries no gradient, and the reference's does")
    grad_outputs = [
        grad if output.requires_grad and twin.requires_grad else torch.zeros_like(grad)
        for grad, output, twin in zip(cotangents(twin_outputs), outputs, twin_outputs, strict=True)
    ]
    return _evaluation(twin_outputs, twin_values, grad_outputs), _evaluation(outputs, values, grad_outputs)


def _evaluation(outputs: tuple[Tensor, ...], values: list[Any], grad_outputs: list[Tensor]) -> Evaluation:
    detached = tuple(output.detach().clone() for output in outputs)
    return Evaluation(detached, backward(outputs, values, grad_outputs))


def _finite(evaluation: Evaluation) -> bool:
    each = [*evaluation.outputs, *(g for g in evaluation.gradients.values() if g is not None)]
    return all(bool(torch.isfinite(tensor).all()) for tensor in each)


CHECK = Check(
    name="parity",
    harm="Training with this gives other numbers than the mathematics it stands for.",
    remedy="Derive the term named above again on paper, and compare it with the reference's.",
    run=run,
    subject=Case,
)
