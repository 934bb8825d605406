"""A second backward through the same graph."""

from __future__ import annotations

import torch

from bpkit.verification.case import Case, Evaluation, backward, call
from bpkit.verification.check import Check
from bpkit.verification.compare import require_equal

# The same algebra on the same numbers; a matrix product may differ in its last bit by alignment.
RTOL = 1e-14


def run(case: Case) -> None:
    """Three backwards with `retain_graph`, each equal to the first."""
    case.need_gradient()
    values = case.fresh()
    outputs = call(case.forward, values)
    rtol = RTOL if case.dtype is torch.float64 else case.rtol
    first = backward(outputs, values, retain=True)
    for time in ("second", "third"):
        again = backward(outputs, values, retain=True)
        require_equal(case, Evaluation((), again), Evaluation((), first), rtol, where=f"the {time} time, ")


CHECK = Check(
    name="repeat",
    harm="retain_graph, several losses on one graph and Jacobians by row give another gradient each time.",
    remedy="Let backward change nothing it will read again, and draw nothing at random.",
    run=run,
    subject=Case,
)
