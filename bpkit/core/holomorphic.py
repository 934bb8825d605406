"""Complex tensors: the gradient of a holomorphic function.

For L real and y = f(x) holomorphic, torch's gradient of x is ∂L/∂x̄ = δ · conj(∂y/∂x). A formula that is
derived for real tensors and has real coefficients gives just that when it reads the conjugates of what the
forward saw: conj(f′(x)) = f′(conj(x)).

Source: Kreutz-Delgado, "The complex gradient operator and the CR-calculus", 2009, sec. 4.2.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor


def conjugates(saved: Iterable[Tensor | None]) -> tuple[Any, ...]:
    """What a backward reads in the place of `ctx.saved_tensors`; of real tensors these themselves."""
    return tuple(each.conj() if each is not None and each.is_complex() else each for each in saved)
