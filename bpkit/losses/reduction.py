"""What every loss shares: torch's `reduction` argument, and what torch refuses to differentiate."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import _reduction

NONE, MEAN, SUM = 0, 1, 2
BATCHMEAN = 3  # of KLDivLoss alone: the sum over the batch size


def code(reduction: str, size_average: bool | None, reduce: bool | None) -> int:
    """Torch's number for a reduction (0 none, 1 mean, 2 sum), the two deprecated arguments included."""
    if size_average is not None or reduce is not None:
        return _reduction.legacy_get_enum(size_average, reduce)
    return _reduction.get_enum(reduction)


def reduced(terms: Tensor, reduction: int) -> Tensor:
    """The terms, their mean or their sum."""
    return terms if reduction == NONE else terms.mean() if reduction == MEAN else terms.sum()


def share(grad_output: Tensor, input: Tensor, reduction: int) -> Tensor:
    """δ / m, of each term. From the sizes, which a compiled formula leaves open, and not from a number."""
    return grad_output / max(1, input.numel()) if reduction == MEAN else grad_output


def refuse_gradient(function: str, argument: str, tensor: Tensor | None) -> None:
    """Raise torch's error for a weight that asks for a gradient which no loss gives it."""
    if tensor is not None and tensor.requires_grad and torch.is_grad_enabled():
        raise RuntimeError(
            f"The function '{function}' is not differentiable with respect to argument '{argument}'. "
            "This input cannot have requires_grad True."
        )
