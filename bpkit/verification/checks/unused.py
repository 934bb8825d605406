"""Inputs without influence."""

from __future__ import annotations

from bpkit.verification.case import Case, evaluate
from bpkit.verification.check import Check
from bpkit.verification.twins import expectation


def run(case: Case) -> None:
    """None where the reference gives None, a tensor where it gives one, at every size of it."""
    case.need_gradient()
    expected = expectation(case).evaluation.gradients
    actual = evaluate(case.forward, case.fresh()).gradients
    for position, wanted in expected.items():
        given = actual.get(position)
        if (given is None) != (wanted is None):
            kinds = ["None" if each is None else "a tensor" for each in (given, wanted)]
            raise case.advise(
                f"the gradient of {case.names[position]} is {kinds[0]}, the reference's {kinds[1]}"
            )


CHECK = Check(
    name="unused",
    harm="Optimizers decay and move a parameter that has a gradient of zeros, and leave one that has None.",
    remedy="Return None for what the output does not depend on, and zeros where it does with slope zero.",
    run=run,
    subject=Case,
)
