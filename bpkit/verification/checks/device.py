"""The same numbers on an accelerator."""

from __future__ import annotations

import torch
from torch import Tensor

from bpkit.verification.case import Case, call, evaluate
from bpkit.verification.check import Check, Failed, Skipped, one_line
from bpkit.verification.checks.seeded import is_random
from bpkit.verification.compare import require_equal

# Other kernels add in another order.
RTOL = 1e-9


def run(case: Case) -> str:
    """Values and gradients on the CPU and on CUDA; gradients on the device of their inputs."""
    case.need_gradient()
    if not torch.cuda.is_available():
        raise Skipped("no CUDA device here")
    if is_random(case, case.forward):
        raise Skipped("random: each device draws other numbers")
    there = "cpu" if case.device == "cuda" else "cuda"
    other = case.having(
        {i: value.to(there) for i, value in enumerate(case.values) if isinstance(value, Tensor)}
    )
    try:
        call(other.forward, other.fresh(required=()))
    except Exception as error:
        if case.strict:
            raise
        raise Skipped(f"the target runs on {case.device} alone ({one_line(error)})") from error
    here = evaluate(case.forward, case.fresh())
    away = evaluate(other.forward, other.fresh())
    for position, gradient in away.gradients.items():
        if gradient is not None and gradient.device.type != there:
            raise Failed(
                f"the gradient of {case.names[position]} is on {gradient.device}, its input on {there}"
            )
    back = type(away)(
        tuple(each.to(case.device) for each in away.outputs),
        {i: None if g is None else g.to(case.device) for i, g in away.gradients.items()},
    )
    require_equal(
        case, back, here, max(RTOL, 10 * case.rtol), where=f"on {there}, ", against=f" as on {case.device}"
    )
    return f"{case.device} and {there}"


CHECK = Check(
    name="device",
    harm="A model that was checked on one device trains differently, or not at all, on another.",
    remedy="Make tensors by new_* and *_like, on the device of what is given; rely on no order of additions.",
    run=run,
    subject=Case,
)
