"""bfloat16, float16 and float32 against a float64 truth."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bpkit.verification.case import Case, call
from bpkit.verification.check import Check, Failed, Skipped, one_line
from bpkit.verification.precision import Change, evaluation, require_as_exact, rounded
from bpkit.verification.twins import accepted
from bpkit.verification.variants import resized, scaled

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# Beyond this a square overflows in float16 (65,504), and an exponential in float32.
FAR = (300.0,)
# As a loss in float16 is scaled for its small gradients; a detour through a larger number overflows.
SCALED = 256.0
# Long enough for a sum in half precision to lose more than its terms did; its matrix products are slow.
LONG, MOST = (257,), 1 << 14


def run(case: Case) -> str | None:
    """In each dtype the error of value and gradients is at most 4x the reference's own, plus one ulp.

    On the long sums that the check makes up, in float32, plus one ulp a term.
    """
    case.need_reference()
    cases, refused = list(_varied(case)), []
    for dtype in DTYPES:
        for where, varied, change in cases:
            try:
                # A long sum in float32 rounds once a term, in an order that nobody promised.
                ulps = LONG[0] if varied.numel > case.numel and dtype.itemsize == 4 else 1
                reason = _compare(varied, dtype, f"in {_name(dtype)}, {where}", ulps, change)
            except Failed:
                raise
            except Exception:  # a size or a value that nobody gave, and that the target refuses
                if varied is case:
                    raise
                continue
            if reason and varied is case:
                refused.append(reason)
                break
    if len(refused) == len(DTYPES):
        raise Skipped("; ".join(refused))
    return "; ".join(refused) or None


def _loud(grad: Tensor) -> Tensor:
    return grad * SCALED


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _varied(case: Case) -> Iterator[tuple[str, Case, Change]]:
    """The case itself, with a loss that is scaled, far from zero, and long.

    What is long is of one sign: nothing cancels, and a sum kept in low precision stands still.
    """
    yield "", case, torch.clone
    yield f"with output gradients times {SCALED:g}, ", case, _loud
    positive = case.having({i: case.values[i].detach().abs() for i in case.differentiable})
    long = [(each.where, each.case) for each in resized(positive, LONG, MOST) if each.case.numel > case.numel]
    for change, varied in ((torch.clone, scaled(case, FAR)), (torch.abs, long)):
        for where, other in varied:
            expected = accepted(other)
            if expected is not None and expected.finite:
                yield where, other, change


def _compare(case: Case, dtype: torch.dtype, where: str, ulps: int, change: Change) -> str | None:
    """Fail where the target is too far from the truth; the reason where it cannot be compared."""
    exact, reference = rounded(case, dtype), case.need_reference()
    try:
        twin = evaluation(exact, reference, dtype, change=change)
    except Exception as error:
        return f"the reference takes no {_name(dtype)} ({one_line(error)})"
    try:
        call(case.forward, exact.fresh(required=(), dtype=dtype))
    except Exception as error:
        if case.strict:
            raise
        return f"the target takes no {_name(dtype)} ({one_line(error)})"
    actual = evaluation(exact, case.forward, dtype, change=change)
    truth = evaluation(exact, reference, torch.float64, change=change)
    require_as_exact(case, actual, twin, truth, dtype, where, ulps)
    return None


CHECK = Check(
    name="precision",
    harm="Mixed-precision training loses accuracy here that it keeps with torch's own.",
    remedy="Let matrix products and reductions accumulate in float32, and round once, at the end.",
    run=run,
    subject=Case,
)
