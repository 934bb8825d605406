"""Output gradients that are missing, zero, or scaled."""

from __future__ import annotations

import torch
from torch import Tensor

from bpkit.verification.case import Case, Evaluation, backward, call, cotangents
from bpkit.verification.check import Check, Failed, one_line
from bpkit.verification.compare import require_equal


def run(case: Case) -> None:
    """A missing gradient counts as zero; zero gives zero; the backward is linear in what it is given."""
    case.need_gradient()
    values = case.fresh()
    outputs = call(case.forward, values)
    carrying = [index for index, output in enumerate(outputs) if output.requires_grad]
    full = cotangents(outputs)

    def given(which: set[int], factor: float = 1.0) -> list[Tensor]:
        return [factor * g if i in which else torch.zeros_like(g) for i, g in enumerate(full)]

    usual = Evaluation((), backward(outputs, values, full, retain=True))
    for index in carrying if len(carrying) > 1 else ():
        where = f"with a gradient for output {index} alone, "
        zeros = Evaluation((), backward(outputs, values, given({index}), retain=True))
        try:
            missing = backward([outputs[index]], values, [full[index]], retain=True)
        except Exception as error:
            raise Failed(f"{where}{one_line(error)}; torch hands None to such a backward") from error
        require_equal(case, Evaluation((), missing), zeros, case.rtol, where=where, usual=usual)
    nothing = backward(outputs, values, given(set()), retain=True)
    for position, gradient in nothing.items():
        if gradient is not None and bool((gradient != 0).any()):
            worst = float(gradient.abs().nan_to_num(torch.inf).max())
            raise Failed(
                f"for zero output gradients, that of {case.names[position]} reaches {worst:.6g}, not 0"
            )
    for factor in _factors(case.dtype):
        scaled = backward(outputs, values, given(set(carrying), factor), retain=True)
        require_equal(
            case,
            Evaluation((), {i: None if g is None else g / factor for i, g in scaled.items()}),
            usual,
            case.rtol,
            where=f"for output gradients times {factor:g}, and its own divided by that, ",
            usual=usual,
        )


def _factors(dtype: torch.dtype) -> tuple[float, ...]:
    """The other sign, the scale of a loss in float16, the share of a mean over many: all exact."""
    if dtype is torch.float16:
        return -2.0, 2.0**6, 2.0**-6
    return -2.0, 2.0**16, 2.0**-24


CHECK = Check(
    name="undefined",
    harm="A loss that uses some outputs only, a masked position or a scaled loss gives wrong gradients.",
    remedy="Keep materialize_grads on or test each grad_output for None, and let backward be linear in it: "
    "no clipping, no sign, no branch on its value.",
    run=run,
    subject=Case,
)
