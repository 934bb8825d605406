"""Low precision done as torch's own kernels do it, computed in float32 and rounded once; narrow integers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

LOW_PRECISION = (torch.bfloat16, torch.float16)


def widen(tensor: Tensor) -> Tensor:
    """`tensor` in float32 if it is in bfloat16 or float16, else itself."""
    return tensor.float() if tensor.dtype in LOW_PRECISION else tensor


def narrowest(largest: int) -> torch.dtype:
    """The smallest integers that hold 0 to `largest`."""
    dtypes = (torch.uint8, torch.int16, torch.int32, torch.int64)
    return next(dtype for dtype in dtypes if largest <= torch.iinfo(dtype).max)


def in_float32(function: Callable[..., Any]) -> Callable[..., Any]:
    """Run `function` on widened tensors and round what it returns to its first argument's dtype."""

    @functools.wraps(function)
    def widened(first: Tensor, *args: Any) -> Any:
        if first.dtype not in LOW_PRECISION:
            return function(first, *args)
        result = function(first.float(), *(widen(arg) if isinstance(arg, Tensor) else arg for arg in args))
        return result.to(first.dtype)

    return widened
