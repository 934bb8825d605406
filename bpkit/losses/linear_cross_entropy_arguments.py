"""What may be given to `linear_cross_entropy`; for what may not, torch has the error."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from bpkit.core.refusal import refuse


def require_well_formed(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    weight: Tensor | None,
    reduction: str,
    ignored: int | None,
    smoothing: float,
) -> None:
    """Raise, in torch's words, where the arguments do not go together."""
    if _well_formed(input, linear_weight, target, bias, weight, ignored, smoothing):
        return
    refuse(
        F.linear_cross_entropy,
        input,
        linear_weight,
        target,
        linear_bias=bias,
        weight=weight,
        reduction=reduction,
        ignore_index=ignored,
        label_smoothing=smoothing,
    )


def _well_formed(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    weight: Tensor | None,
    ignored: int | None,
    smoothing: float,
) -> bool:
    if input.dim() not in (1, 2) or linear_weight.dim() < 2 or not 0.0 <= smoothing <= 1.0:
        return False
    classes, *out, features = linear_weight.shape
    batch = input.shape[:-1]
    if input.shape[-1] != features or (out and not batch) or input.dtype is not linear_weight.dtype:
        return False
    if bias is not None and (tuple(bias.shape) != (classes, *out) or bias.dtype is not input.dtype):
        return False
    if weight is not None and tuple(weight.shape) != (classes,):
        return False
    if target.is_floating_point():
        return target.shape == (*batch, classes, *out) and ignored is None
    return target.shape == (*batch, *out) and target.dtype in (torch.int64, torch.uint8)
