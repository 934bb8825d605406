"""A stack of output gradients at once, as `is_grads_batched`, `jacrev` and Hessians do."""

from __future__ import annotations

import torch

from bpkit.verification.case import Case, Forward, backward, both, call, cotangents
from bpkit.verification.check import Check, Failed, Skipped
from bpkit.verification.checks import unmutated
from bpkit.verification.compare import difference

STACK = 3
# What torch says where its batching has no rule for an operation, or none can follow the code.
REFUSALS = ("Batching rule not implemented", "vmap", "BatchedTensor", "data pointer")


def run(case: Case) -> None:
    """`vmap` over the backward against a loop over it."""
    case.need_gradient()
    try:
        unmutated.run(case)
    except Failed as failure:
        raise Skipped("torch's batching crashes on a backward that writes to what it is given") from failure
    both(case, lambda forward: _compare(case, forward), refusals=REFUSALS)


def _compare(case: Case, forward: Forward) -> None:
    values = case.fresh()
    outputs = [output for output in call(forward, values) if output.requires_grad]
    if not outputs:
        return
    stack = [cotangents(outputs, seed) for seed in range(STACK)]
    leaves = [values[position] for position in case.differentiable]
    together = torch.autograd.grad(
        outputs,
        leaves,
        [torch.stack(grads) for grads in zip(*stack, strict=True)],
        retain_graph=True,
        allow_unused=True,
        is_grads_batched=True,
    )
    for index, grads in enumerate(stack):
        one = backward(outputs, values, grads, retain=True)
        for batched, position in zip(together, case.differentiable, strict=True):
            wrong = difference(
                f"the gradient of {case.names[position]}, batched,",
                None if batched is None else batched[index],
                one[position],
                case.rtol,
            )
            if wrong:
                raise Failed(wrong)


CHECK = Check(
    name="batched",
    harm="Jacobians and Hessians taken with is_grads_batched or jacrev are wrong or refused.",
    remedy="Let backward index axes from the last one, and branch on no value of a tensor.",
    run=run,
    subject=Case,
)
