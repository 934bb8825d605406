"""Inputs and output gradients that are not contiguous."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from bpkit.verification.case import Case, Evaluation, Forward, both, call, cotangents, evaluate
from bpkit.verification.check import Check, Failed, Skipped, one_line
from bpkit.verification.checks.seeded import is_random
from bpkit.verification.compare import require_equal
from bpkit.verification.variants import LAYOUTS

Layout = Callable[[Tensor], Tensor]


def run(case: Case) -> None:
    """Every layout of the gradients, of all inputs together, and of each input by itself."""
    shapes = call(case.forward, case.fresh(required=()))
    for name, layout in LAYOUTS.items():
        given = [layout(grad) for grad in cotangents(shapes)]
        _compare(case, f"for {name} output gradients, ", {}, given, [grad.contiguous() for grad in given])
    tensors = [
        i for i, value in enumerate(case.values) if isinstance(value, Tensor) and i not in case.buffers
    ]
    for name, layout in LAYOUTS.items():
        for positions in [tensors, *([i] for i in tensors if len(tensors) > 1)]:
            which = "inputs" if len(positions) > 1 else case.names[positions[0]]
            _compare(case, f"for {name} {which}, ", dict.fromkeys(positions, layout))


def _compare(
    case: Case,
    where: str,
    layouts: dict[int, Layout],
    given: list[Tensor] | None = None,
    plain: list[Tensor] | None = None,
) -> None:
    def laid_out(forward: Forward) -> Evaluation:
        return evaluate(forward, _values(case, layouts, contiguous=False), given)

    def contiguous(forward: Forward) -> Evaluation:
        return evaluate(forward, _values(case, layouts, contiguous=True), plain)

    try:
        expected = both(case, contiguous)
    except Skipped:  # what a layout repeats may lie outside of a domain
        return
    except Exception:
        if layouts and not _defined(case, contiguous):
            return
        raise
    try:
        actual = both(case, laid_out)
    except Skipped:  # the reference refuses this layout too
        return
    except Exception as error:
        raise Failed(f"{where}{one_line(error)}") from error
    try:
        require_equal(case, actual, expected, case.rtol, where=where)
    except Failed:  # random masks follow the layout, in torch's own layers too
        if case.reference is None:
            if layouts and is_random(case, case.forward):
                return
            raise
        twin = laid_out(case.reference)
        if _differ(case, actual, twin) is not None:
            raise


def _defined(case: Case, measure: Callable[[Forward], Evaluation]) -> bool:
    """Whether the reference has numbers for these values; without one, nobody says that they make sense."""
    return case.reference is not None and all(
        bool(output.isfinite().all()) for output in measure(case.reference).outputs
    )


def _differ(case: Case, actual: Evaluation, twin: Evaluation) -> Failed | None:
    try:
        require_equal(case, actual, twin, case.rtol)
    except Failed as failure:
        return failure
    return None


def _values(case: Case, layouts: dict[int, Layout], *, contiguous: bool) -> list[Any]:
    """Leaves with the values that `layouts` make, in those layouts or without them."""
    values = case.fresh(required=())
    for position, layout in layouts.items():
        laid_out = layout(values[position])
        values[position] = laid_out.contiguous() if contiguous else laid_out
    return [
        value.detach().requires_grad_(i in case.differentiable) if isinstance(value, Tensor) else value
        for i, value in enumerate(values)
    ]


CHECK = Check(
    name="layouts",
    harm="A transposed, sliced or expanded tensor, which users pass all the time, gives wrong numbers.",
    remedy="Use operations that honour strides (reshape, not view on memory; no data_ptr without "
    "contiguous()), on inputs and on grad_output alike.",
    run=run,
    subject=Case,
)
