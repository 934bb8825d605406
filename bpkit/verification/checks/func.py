"""`torch.func`: gradients of a function, of each sample by itself, and whole Jacobians."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bpkit.verification.case import (
    Case,
    Evaluation,
    Forward,
    backward,
    both,
    call,
    cotangents,
    evaluate,
    seed,
)
from bpkit.verification.check import Check, Skipped, one_line
from bpkit.verification.checks.vmap import BATCH, OUTSIDE, REFUSALS, stack
from bpkit.verification.compare import require_equal

# A Jacobian has a row an output element: beyond this many, its rows are no news.
ROWS = 64


def run(case: Case) -> str | None:
    """`grad`, `vmap(grad)` with shared parameters, and `jacrev`, each equal to what autograd gives."""
    case.need_gradient()
    outputs = call(case.forward, case.fresh())
    weights = [
        grad if output.requires_grad else None
        for grad, output in zip(cotangents(outputs), outputs, strict=True)
    ]
    plain = evaluate(case.forward, case.fresh()).gradients
    transforms: dict[str, tuple[Callable[[Forward], Gradients], Gradients]] = {
        "grad": (lambda forward: _grad(case, forward, weights), plain)
    }
    data = [i for i in case.differentiable if i not in case.parameters]
    refused = {}
    if data:
        batched = case.having({i: stack(case.values[i], 0) for i in data})
        try:
            expected = _looped(case, batched, data, weights)
            transforms["vmap(grad)"] = (
                lambda forward: _per_sample(batched, forward, weights, data),
                expected,
            )
        except Exception as error:  # one by one, too, what this check made up is refused
            refused["vmap(grad)"] = f"{OUTSIDE} ({one_line(error)})"
    if sum(output.numel() for output in outputs) <= ROWS:
        transforms["jacrev"] = (lambda forward: _jacrev(case, forward, weights), plain)
    for name, (measure, gradients) in transforms.items():
        try:
            _require(case, measure, gradients, f"under {name}, ")
        except Skipped as refusal:
            refused[name] = str(refusal)
    if len(refused) >= len(transforms):
        raise Skipped(next(iter(refused.values())))
    return "; ".join(f"without {name}: {reason}" for name, reason in refused.items()) or None


Weights = Sequence[Tensor | None]
Gradients = dict[int, Tensor | None]


def _require(case: Case, measure: Callable[[Forward], Gradients], expected: Gradients, where: str) -> None:
    def seeded(forward: Forward) -> Gradients:
        seed()
        return measure(forward)

    actual = both(case, seeded, refusals=REFUSALS)
    require_equal(case, Evaluation((), actual), Evaluation((), expected), case.rtol, where=where)


def _loss(forward: Forward, weights: Weights) -> Callable[..., Tensor]:
    """The outputs that carry a gradient, weighted and summed."""

    def loss(*values: Any) -> Tensor:
        outputs = forward(*values)
        parts = [(out * w).sum() for out, w in zip(outputs, weights, strict=True) if w is not None]
        return torch.stack(parts).sum()

    return loss


def _grad(case: Case, forward: Forward, weights: Weights) -> Gradients:
    gradient = torch.func.grad(_loss(forward, weights), argnums=case.differentiable)
    return dict(zip(case.differentiable, gradient(*case.fresh(required=())), strict=True))


def _per_sample(batched: Case, forward: Forward, weights: Weights, data: Sequence[int]) -> Gradients:
    gradient = torch.func.grad(_loss(forward, weights), argnums=batched.differentiable)
    dims = tuple(0 if i in data else None for i in range(len(batched.values)))
    gradients = torch.func.vmap(gradient, in_dims=dims, randomness="same")(*batched.fresh(required=()))
    return dict(zip(batched.differentiable, gradients, strict=True))


def _looped(case: Case, batched: Case, data: Sequence[int], weights: Weights) -> Gradients:
    """The gradients of one sample after another, stacked."""
    grads = [torch.zeros(()) if weight is None else weight for weight in weights]
    found = []
    for k in range(BATCH):
        one = case.having({i: batched.values[i][k] for i in data})
        values = one.fresh()
        found.append(backward(call(one.forward, values), values, grads))
    return {
        i: torch.stack(
            [torch.zeros_like(case.values[i]) if g is None else g for g in (each[i] for each in found)]
        )
        for i in case.differentiable
    }


def _jacrev(case: Case, forward: Forward, weights: Weights) -> Gradients:
    """Jacobians by row, contracted with the weights."""

    def outputs(*values: Any) -> tuple[Tensor, ...]:
        return tuple(out for out, w in zip(forward(*values), weights, strict=True) if w is not None)

    jacobians = torch.func.jacrev(outputs, argnums=case.differentiable)(*case.fresh(required=()))
    kept = [weight for weight in weights if weight is not None]
    return {
        position: sum(
            torch.tensordot(weight, jacobian[k], weight.dim())
            for weight, jacobian in zip(kept, jacobians, strict=True)
        )
        for k, position in enumerate(case.differentiable)
    }


CHECK = Check(
    name="func",
    harm="torch.func.grad, per-sample gradients and Jacobians are refused, or differ from backward().",
    remedy="Write forward without ctx, and setup_context beside it; read tensors from ctx.saved_tensors.",
    run=run,
    subject=Case,
)
