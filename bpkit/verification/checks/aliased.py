"""The same tensor passed for two arguments."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

from bpkit.verification.case import Case, Evaluation, Forward, both, evaluate
from bpkit.verification.check import Check, Failed, Skipped, one_line
from bpkit.verification.compare import require_equal


def run(case: Case) -> str:
    """The values are those of two equal tensors, the gradient is the sum of theirs."""
    case.need_gradient()
    pairs = list(_pairs(case))
    if not pairs:
        raise Skipped("no two differentiable inputs of one shape")
    tried = 0
    for first, second in pairs:
        names = f"{case.names[first]} and {case.names[second]}"
        alike = case.having({second: case.values[first]})
        values = alike.fresh()
        try:
            apart = evaluate(case.forward, values)
        except Exception:  # out of the target's domain
            continue

        def shared(
            forward: Forward, alike: Case = alike, first: int = first, second: int = second
        ) -> Evaluation:
            values = alike.fresh()
            values[second] = values[first]
            return evaluate(forward, values)

        where = f"with one tensor for {names}, "
        try:
            together = both(alike, shared)
        except Skipped:
            continue
        except Exception as error:
            raise Failed(f"{where}{one_line(error)}") from error
        given = (apart.gradients[first], apart.gradients[second])
        parts = [gradient for gradient in given if gradient is not None]
        total = sum(parts[1:], parts[0]) if parts else None
        require_equal(
            case,
            Evaluation(together.outputs, {first: together.gradients[first]}),
            Evaluation(apart.outputs, {first: total}),
            case.rtol,
            where=where,
            usual=apart,
        )
        tried += 1
    if not tried:
        raise Skipped("no two inputs may be one tensor")
    return f"{tried} pair{'s' * (tried != 1)}"


def _pairs(case: Case) -> Iterator[tuple[int, int]]:
    """Pairs of inputs of one shape, parameters apart."""
    data = [position for position in case.differentiable if position not in case.parameters]
    for first, second in combinations(data, 2):
        if case.values[first].shape == case.values[second].shape:
            yield first, second


CHECK = Check(
    name="aliased",
    harm="f(x, x), as in self-attention or a squared product, gets half its gradient or another's.",
    remedy="Return the gradient of each argument by itself, in a tensor of its own; the engine adds them.",
    run=run,
    subject=Case,
)
