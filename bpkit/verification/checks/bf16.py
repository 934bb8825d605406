"""bfloat16 against a float64 truth."""

from __future__ import annotations

import torch

from bpkit.verification.case import Case, call
from bpkit.verification.check import Check, Skipped, one_line
from bpkit.verification.precision import LOW, evaluation, require_as_exact, rounded


def run(case: Case) -> None:
    """The error of value and gradients is at most 4x the reference's own, plus one ulp."""
    reference = case.need_reference()
    exact = rounded(case, LOW)
    try:
        twin = evaluation(exact, reference, LOW)
    except Exception as error:
        raise Skipped(f"the reference takes no bfloat16 ({one_line(error)})") from error
    try:
        call(case.forward, exact.fresh(required=(), dtype=LOW))
    except Exception as error:
        if case.strict:
            raise
        raise Skipped(f"the target takes no bfloat16 ({one_line(error)})") from error
    actual = evaluation(exact, case.forward, LOW)
    require_as_exact(case, actual, twin, evaluation(exact, reference, torch.float64))


CHECK = Check(
    name="bf16",
    harm="Mixed-precision training loses accuracy here that it keeps with torch's own.",
    remedy="Let matrix products and reductions accumulate in float32, and round once, at the end.",
    run=run,
    subject=Case,
)
