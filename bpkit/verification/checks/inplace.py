"""Outputs that somebody writes to before the backward."""

from __future__ import annotations

from bpkit.verification.case import Case, Evaluation, Forward, backward, both, call, cotangents
from bpkit.verification.check import Check, Failed, Skipped, Warned, one_line
from bpkit.verification.compare import require_equal


def run(case: Case) -> str:
    """`output.mul_(2)` where the reference allows it: the same gradients."""
    case.need_gradient()
    reference = case.need_reference()

    def measure(forward: Forward) -> Evaluation:
        values = case.fresh()
        outputs = list(call(forward, values))
        for index, output in enumerate(outputs):
            if output.is_floating_point():
                outputs[index] = output.mul_(2)
        detached = tuple(output.detach().clone() for output in outputs)
        return Evaluation(detached, backward(outputs, values, cotangents(outputs)))

    try:
        actual = both(case, measure)
    except (Failed, Warned):
        raise
    except Skipped as same:
        raise Skipped(f"not allowed: {same}") from same
    except Exception as error:
        raise case.advise(f"{one_line(error)}, which the reference allows") from error
    try:
        expected = measure(reference)
    except Exception as error:
        return f"the reference does not allow it ({one_line(error)})"
    require_equal(case, actual, expected, case.rtol, where="after an in-place operation on the output, ")
    return "as the reference"


CHECK = Check(
    name="inplace",
    harm="Residual additions and in-place activations after this (`out += identity`) raise or train wrongly.",
    remedy="Save the input, or a tensor of its own, where the twin does not save its output; return no view.",
    run=run,
    subject=Case,
)
