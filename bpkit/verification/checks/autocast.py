"""Autocast to bfloat16 and float16, with the backward outside of it and inside."""

from __future__ import annotations

from itertools import product

import torch

from bpkit.verification.case import Case, Evaluation, Forward, both, twin
from bpkit.verification.check import Check, Failed, Skipped, Warned, one_line
from bpkit.verification.precision import evaluation, require_as_exact, rounded


def run(case: Case) -> None:
    """Dtypes as the reference's, gradients finite and as exact as its."""
    exact = rounded(case, torch.float32)
    for lowered, inside in product((torch.bfloat16, torch.float16), (False, True)):
        name = str(lowered).removeprefix("torch.")
        where = f"with the backward {'inside' if inside else 'outside'} of autocast to {name}, "

        def measure(forward: Forward, lowered: torch.dtype = lowered, inside: bool = inside) -> Evaluation:
            return evaluation(exact, forward, torch.float32, autocast=lowered, inside=inside)

        try:
            actual = both(case, measure)
        except (Failed, Warned, Skipped):
            raise
        except Exception as error:
            raise case.advise(f"{where}{one_line(error)}") from error
        if case.reference is not None:
            truth = evaluation(exact, case.reference, torch.float64)
            require_as_exact(case, actual, twin(case, measure), truth, lowered, where)
        for position, gradient in actual.gradients.items():
            if case.reference is None and gradient is not None and not gradient.isfinite().all():
                raise Failed(f"{where}the gradient of {case.names[position]} is not finite")


CHECK = Check(
    name="autocast",
    harm="Mixed-precision training fails here, or runs in another precision than with torch's own.",
    remedy="Derive from bpkit.Function and set autocast to torch's policy for the operation, or decorate "
    "with torch.amp.custom_fwd and custom_bwd.",
    run=run,
    subject=Case,
)
