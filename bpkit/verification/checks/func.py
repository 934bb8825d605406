"""`torch.func.grad`, and it under `vmap`."""

from __future__ import annotations

import torch
from torch import Tensor

from bpkit.verification.case import SEED, Case, Evaluation, Forward, both, call, cotangents, evaluate
from bpkit.verification.check import Check
from bpkit.verification.checks.vmap import REFUSALS
from bpkit.verification.compare import require_equal


def run(case: Case) -> None:
    """Equal to what autograd gives."""
    case.need_gradient()
    expected = evaluate(case.forward, case.fresh())
    probed = call(case.forward, case.fresh())
    weights = [
        grad if output.requires_grad else None
        for grad, output in zip(cotangents(probed), probed, strict=True)
    ]

    def measure(forward: Forward) -> Evaluation:
        def loss(*values: Tensor) -> Tensor:
            outputs = forward(*values)
            return torch.stack(
                [(out * w).sum() for out, w in zip(outputs, weights, strict=True) if w is not None]
            ).sum()

        torch.manual_seed(SEED)
        gradients = torch.func.grad(loss, argnums=case.differentiable)(*case.fresh(required=()))
        return Evaluation((), dict(zip(case.differentiable, gradients, strict=True)))

    actual = both(case, measure, refusals=REFUSALS)
    require_equal(
        case, actual, Evaluation((), expected.gradients), case.rtol, where="under torch.func.grad, "
    )


CHECK = Check(
    name="func",
    harm="torch.func.grad, jacrev and hessian refuse this or give another gradient than backward().",
    remedy="Write forward without ctx, and setup_context beside it; read tensors from ctx.saved_tensors.",
    run=run,
    subject=Case,
)
