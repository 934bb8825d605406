"""Inputs without influence."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bpkit.verification.case import Case, evaluate
from bpkit.verification.check import Check
from bpkit.verification.twins import expectation


def run(case: Case) -> None:
    """None where the reference gives None, a tensor where it gives one, at every size of it."""
    case.need_gradient()
    expected = expectation(case).evaluation.gradients
    actual = evaluate(case.forward, case.fresh()).gradients
    for position, given in _without_influence(case):
        expected[position], actual[position] = None, given
    for position, wanted in expected.items():
        given = actual.get(position)
        if (given is None) != (wanted is None):
            kinds = ["None" if each is None else "a tensor" for each in (given, wanted)]
            raise case.advise(
                f"the gradient of {case.names[position]} is {kinds[0]}, the reference's {kinds[1]}"
            )


def _without_influence(case: Case) -> Iterator[tuple[int, Tensor | None]]:
    """Inputs that the reference has no gradient for when one is asked of them, and the target's."""
    for position, value in enumerate(case.values):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            continue
        if position in (*case.differentiable, *case.buffers):
            continue
        required = (*case.differentiable, position)
        try:
            wanted = evaluate(case.need_reference(), case.fresh(required, torch.float64)).gradients[position]
            given = evaluate(case.forward, case.fresh(required)).gradients[position]
        except Exception:  # not to be differentiated, by torch's own or by this one
            continue
        if wanted is None:
            yield position, given


CHECK = Check(
    name="unused",
    harm="Optimizers decay and move a parameter that has a gradient of zeros, and leave one that has None.",
    remedy="Return None for what the output does not depend on, and zeros where it does with slope zero.",
    run=run,
    subject=Case,
)
