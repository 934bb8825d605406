"""`torch.compile(fullgraph=True, backend="aot_eager")`, forward and backward."""

from __future__ import annotations

import torch

from bpkit.verification.case import Case, Evaluation, Forward, both, evaluate
from bpkit.verification.check import Check, Skipped, one_line
from bpkit.verification.compare import require_equal


def run(case: Case) -> None:
    """Equal to eager."""
    require_as_eager(case, "aot_eager", case.rtol)


def require_as_eager(case: Case, backend: str, rtol: float) -> None:
    """Compile the target whole for `backend`, and fail where it differs from eager."""

    def measure(forward: Forward) -> Evaluation:
        torch.compiler.reset()
        try:
            compiled = torch.compile(forward, fullgraph=True, backend=backend, dynamic=False)
            return evaluate(compiled, case.fresh())
        finally:
            torch.compiler.reset()

    eager = evaluate(case.forward, case.fresh())
    try:
        actual = both(case, measure)
    except Skipped:
        raise
    except Exception as error:
        if case.strict:
            raise
        raise Skipped(f"torch.compile does not take this target whole ({one_line(error)})") from error
    require_equal(case, actual, eager, rtol, where="compiled, ")


CHECK = Check(
    name="compile",
    harm="A model compiled with torch.compile breaks at this call, or trains on other gradients than eager.",
    remedy="Keep forward and backward to tensor operations: no print, no numpy, no branch on values.",
    run=run,
    subject=Case,
    every=False,
)
