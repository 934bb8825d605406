"""`torch.compile(fullgraph=True)` with its own backend: generated kernels, forward and backward."""

from __future__ import annotations

from bpkit.core.fuse import compiler_available
from bpkit.verification.case import Case
from bpkit.verification.check import Check, Skipped
from bpkit.verification.checks.compile import require_as_eager

# A generated kernel adds in another order, and has its own exponential.
RTOL = 1e-9


def run(case: Case) -> None:
    """Equal to eager."""
    if not compiler_available():
        raise Skipped("no C++ compiler here")
    require_as_eager(case, "inductor", max(RTOL, case.rtol))


CHECK = Check(
    name="inductor",
    harm="A compiled model trains on other gradients than eager, once kernels are generated for it.",
    remedy="Look for memory that is read after it was written, and for an output that is a view of an input.",
    run=run,
    subject=Case,
    every=False,
    costly=True,
)
