"""The gradient against a numerical one, every column of the Jacobian."""

from __future__ import annotations

from bpkit.verification.case import Case, both
from bpkit.verification.check import Check, Failed
from bpkit.verification.numeric import function_of, require_numeric
from bpkit.verification.variants import scaled


def run(case: Case) -> None:
    """On the values given; without a reference to do so cheaply, in both tails too."""
    case.need_gradient()
    case.need_float64()
    both(case, lambda forward: require_numeric(*function_of(case.run_as(forward))))
    if case.reference is not None:
        return
    for where, varied in scaled(case):
        try:
            function, inputs = function_of(varied)
            finite = all(bool(output.isfinite().all()) for output in function(*inputs))
        except Exception:  # outside of the target's domain
            continue
        if finite:
            try:
                require_numeric(function, inputs)
            except Failed as failure:
                raise Failed(f"{where}{failure}") from failure


CHECK = Check(
    name="gradcheck",
    harm="The backward is not the derivative of the forward, so training follows another slope.",
    remedy="Derive it again; a factor, a sum over a broadcast axis or a missing term are the usual causes. "
    "Gradients that autograd leaves undefined must count as zero.",
    run=run,
    subject=Case,
)
