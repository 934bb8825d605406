"""Adagrad: each step divided by the root of the sum of all squared gradients so far.

    s ← s + g²
    θ ← θ - η / (1 + (k - 1) γ) · g / (√s + ε)        k: steps so far, γ: lr_decay

g is the gradient, plus λ θ if the weights decay; s starts at `initial_accumulator_value`.
Source: Duchi, Hazan & Singer, "Adaptive subgradient methods", JMLR 2011.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bpkit.core.spec import OptimizerSpec
from bpkit.optim.update import State, Update, count, real


class Adagrad(Update, torch.optim.Adagrad):
    """`torch.optim.Adagrad`, its update written out; gradients may be sparse."""

    sparse = True

    def update(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], states: list[State]
    ) -> None:
        lr, decay = float(group["lr"]), group["lr_decay"]
        if group["weight_decay"]:
            if any(grad.is_sparse for grad in grads):
                raise RuntimeError("weight_decay option is not compatible with sparse gradients")
            grads = list(torch._foreach_add(grads, params, alpha=group["weight_decay"]))
        rates = [-lr / (1 + (step - 1) * decay) for step in count(states)]
        dense = [i for i, grad in enumerate(grads) if not grad.is_sparse]
        sums = [real(state["sum"]) for state in states]
        if dense:
            squares, kept = [sums[i] for i in dense], [grads[i] for i in dense]
            torch._foreach_addcmul_(squares, kept, kept)
            scale = torch._foreach_sqrt(squares)
            torch._foreach_add_(scale, group["eps"])
            torch._foreach_addcdiv_([params[i] for i in dense], kept, scale, [rates[i] for i in dense])
        for i, grad in enumerate(grads):
            if grad.is_sparse:
                _update_rows(params[i], grad.coalesce(), sums[i], rates[i], group["eps"])


def _update_rows(param: Tensor, grad: Tensor, squares: Tensor, rate: float, eps: float) -> None:
    """The same rule, on the rows that a sparse gradient has."""
    index, values = grad.indices(), grad.values()

    def sparse(rows: Tensor) -> Tensor:
        return torch.sparse_coo_tensor(index, rows, grad.shape, is_coalesced=True, check_invariants=False)

    squares.add_(sparse(values * values))
    scale = squares.sparse_mask(grad).values().sqrt() + eps
    param.add_(sparse(values / scale), alpha=rate)


SPECS = (
    OptimizerSpec(
        name="adagrad",
        optimizer=Adagrad,
        reference=torch.optim.Adagrad,
        settings=(
            {"lr": 0.1},
            {"lr": 0.1, "lr_decay": 0.01, "weight_decay": 0.01},
            {"lr": 0.1, "initial_accumulator_value": 0.5, "maximize": True},
        ),
        aliases=("Adagrad",),
        summary="steps scaled by all squared gradients so far",
    ),
)
