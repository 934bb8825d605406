"""Every subset of inputs that require a gradient."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

from bpkit.verification.case import Case, Evaluation, evaluate
from bpkit.verification.check import Check, Failed
from bpkit.verification.compare import require_equal

# 2⁵ subsets take milliseconds; of more inputs, each alone and each left out tell the same.
EXHAUSTIVE = 5


def run(case: Case) -> str | None:
    """The gradients of a subset are those of all, and the values do not depend on it."""
    case.need_gradient()
    whole = evaluate(case.forward, case.fresh())
    tried = 0
    for subset in _subsets(case.differentiable):
        part = evaluate(case.forward, case.fresh(required=subset))
        wanted = Evaluation(whole.outputs, {i: whole.gradients[i] for i in subset})
        alone = ", ".join(case.names[i] for i in subset) or "nothing"
        for i in subset:
            if part.gradients[i] is None and whole.gradients[i] is not None:
                raise Failed(f"when {alone} alone requires a gradient, there is none for {case.names[i]}")
        require_equal(case, part, wanted, case.rtol, where=f"when {alone} alone requires a gradient, ")
        tried += 1
    return f"{tried} subset{'s' * (tried != 1)}"


def _subsets(positions: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    sizes = range(len(positions))
    if len(positions) > EXHAUSTIVE:
        sizes = range(1)
        yield from ((i,) for i in positions)
        yield from (tuple(j for j in positions if j != i) for i in positions)
    for size in sizes:
        yield from combinations(positions, size)


CHECK = Check(
    name="subsets",
    harm="Freezing an input changes the gradients of the others: fine-tuning trains on wrong numbers.",
    remedy="Compute each gradient from ctx.needs_input_grad[i] of that very input, and save what it takes.",
    run=run,
    subject=Case,
)
