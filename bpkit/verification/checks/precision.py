"""bfloat16, float16 and float32 against a float64 truth."""

from __future__ import annotations

import torch

from bpkit.verification.case import Case, call
from bpkit.verification.check import Check, Skipped, one_line
from bpkit.verification.precision import evaluation, require_as_exact, rounded

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def run(case: Case) -> str | None:
    """In each dtype the error of value and gradients is at most 4x the reference's own, plus one ulp."""
    reference = case.need_reference()
    refused = []
    for dtype in DTYPES:
        name = str(dtype).removeprefix("torch.")
        exact = rounded(case, dtype)
        try:
            twin = evaluation(exact, reference, dtype)
        except Exception as error:
            refused.append(f"the reference takes no {name} ({one_line(error)})")
            continue
        try:
            call(case.forward, exact.fresh(required=(), dtype=dtype))
        except Exception as error:
            if case.strict:
                raise
            refused.append(f"the target takes no {name} ({one_line(error)})")
            continue
        actual = evaluation(exact, case.forward, dtype)
        truth = evaluation(exact, reference, torch.float64)
        require_as_exact(case, actual, twin, truth, dtype, f"in {name}, ")
    if len(refused) == len(DTYPES):
        raise Skipped("; ".join(refused))
    return "; ".join(refused) or None


CHECK = Check(
    name="precision",
    harm="Mixed-precision training loses accuracy here that it keeps with torch's own.",
    remedy="Let matrix products and reductions accumulate in float32, and round once, at the end.",
    run=run,
    subject=Case,
)
