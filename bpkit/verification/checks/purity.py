"""What the backward calls."""

from __future__ import annotations

from torch import Tensor

from bpkit.core.purity import audit, run_backward
from bpkit.verification.case import Case, call, cotangents
from bpkit.verification.check import Check, Skipped


def run(case: Case) -> str | None:
    """No autograd inside a backward, no backward kernel of torch's; vendor kernels are named."""
    case.need_gradient()
    if case.device != "cpu":
        raise Skipped("kernels are seen on the CPU alone, where a backward runs on the caller's thread")
    values = case.fresh()
    outputs = call(case.forward, values)
    roots = [
        (output, grad)
        for output, grad in zip(outputs, cotangents(outputs), strict=True)
        if output.requires_grad
    ]
    if not roots:
        raise Skipped("no output carries a gradient")
    inputs: list[Tensor] = [values[position] for position in case.differentiable]
    with audit() as found:
        run_backward([output for output, _ in roots], inputs, [grad for _, grad in roots])
    if found.breaches:
        raise case.advise("the backward " + ", ".join(dict.fromkeys(found.breaches)))
    return "; ".join(f"uses {kernel.op} for {kernel.purpose}" for kernel in found.vendor) or None


CHECK = Check(
    name="purity",
    harm="The derivation is torch's and not the one written down, so reading it proves nothing.",
    remedy="Write the gradient as tensor algebra: no autograd inside a backward, no *backward* kernel.",
    run=run,
    subject=Case,
)
