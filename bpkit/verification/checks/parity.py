"""Values and gradients against the reference, in float64."""

from __future__ import annotations

from bpkit.verification.case import Case
from bpkit.verification.check import Check
from bpkit.verification.twins import accepted, expectation, require_parity
from bpkit.verification.variants import scaled


def run(case: Case) -> str | None:
    """On the values given, then scaled into both tails, where the reference accepts those."""
    expected = expectation(case)
    require_parity(case, expected)
    for where, varied in scaled(case):
        wanted = accepted(varied)
        if wanted is None or not wanted.finite:
            continue
        try:
            varied.forward(*varied.fresh(required=()))
        except Exception:  # refusing values that the user never gave is a limit, no mistake
            continue
        require_parity(varied, wanted, where=where, usual=expected)
    if case.dtype.itemsize < 8:
        return f"in {str(case.dtype).removeprefix('torch.')}, against a float64 reference"
    return None


CHECK = Check(
    name="parity",
    harm="Training with this gives other numbers than the mathematics it stands for.",
    remedy="Derive the term named above again on paper, and compare it with the reference's.",
    run=run,
    subject=Case,
)
