"""Operators that reduce axes: y = Σ x and its kin, and their running forms.

Σ        ∂L/∂x[k] = g                                   mean: g / N
Σx²      var: 2 (x[k] - μ) g / (N - c),  std: that with g / 2σ,  c the correction
‖x‖ₚ     g sign(x[k]) |x[k]|^(p-1) / ‖x‖ₚ^(p-1)         0 where ‖x‖ is 0
ln Σ eˣ  g exp(x[k] - y)
Σ_{j≤k}  the running sum of g from the other end
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bpkit.ops.op import op

Axes = int | Sequence[int] | None


def reduced_axes(dim: Axes, rank: int) -> list[int]:
    """The axes that are reduced, none given meaning all."""
    given = [dim] if isinstance(dim, int) else list(dim or ())
    return [each % (rank or 1) for each in given] or list(range(rank))


def spread(reduced: Tensor, shape: torch.Size, dim: Axes, keepdim: bool) -> Tensor:
    """What was reduced, with its axes back at size 1, ready to broadcast over `shape`."""
    if keepdim or not shape:
        return reduced
    for axis in sorted(reduced_axes(dim, len(shape))):
        reduced = reduced.unsqueeze(axis)
    return reduced


def _count(shape: torch.Size, dim: Axes) -> int:
    return math.prod([shape[axis] for axis in reduced_axes(dim, len(shape))]) if shape else 1


sum = op(
    lambda input, dim=None, keepdim=False, dtype=None: torch.sum(input, dim, keepdim, dtype=dtype),
    name="sum",
    input=lambda g, shape, dim, keepdim: spread(g, shape, dim, keepdim).expand(shape),
)
mean = op(
    lambda input, dim=None, keepdim=False, dtype=None: torch.mean(input, dim, keepdim, dtype=dtype),
    name="mean",
    input=lambda g, shape, dim, keepdim: spread(g / _count(shape, dim), shape, dim, keepdim).expand(shape),
)


def _nansum(g: Tensor, input: Tensor, shape: torch.Size, dim: Axes, keepdim: bool) -> Tensor:
    return spread(g, shape, dim, keepdim) * ~input.isnan()


nansum = op(
    lambda input, dim=None, keepdim=False, dtype=None: torch.nansum(input, dim, keepdim, dtype=dtype),
    name="nansum",
    holomorphic=False,
    input=_nansum,
)


def _correction(unbiased: bool | None, correction: float | None) -> float:
    if correction is not None:
        return correction
    return 1 if unbiased is None else float(unbiased)


def _variance(
    g: Tensor, input: Tensor, shape: torch.Size, dim: Axes, correction: float, keepdim: bool
) -> Tensor:
    scale = 2 / (_count(shape, dim) - correction) if _count(shape, dim) > correction else math.nan
    return spread(g * scale, shape, dim, keepdim) * (input - input.mean(reduced_axes(dim, len(shape)), True))


def _deviation(
    g: Tensor, input: Tensor, out: Tensor, shape: torch.Size, dim: Axes, correction: float, keepdim: bool
) -> Tensor:
    return _variance((g / (2 * out)).masked_fill(out == 0, 0), input, shape, dim, correction, keepdim)


_var = op(
    lambda input, dim, correction, keepdim: torch.var(input, dim, correction=correction, keepdim=keepdim),
    name="var",
    holomorphic=False,
    input=_variance,
)
_std = op(
    lambda input, dim, correction, keepdim: torch.std(input, dim, correction=correction, keepdim=keepdim),
    name="std",
    holomorphic=False,
    input=_deviation,
)


def _spreads(run: Callable[..., Tensor], name: str) -> Callable[..., Tensor]:
    """`torch.var` and `torch.std` in their three overloads."""

    def spread(
        input: Tensor,
        dim: Any = None,
        unbiased: bool | None = None,
        keepdim: bool = False,
        *,
        correction: float | None = None,
    ) -> Tensor:
        if isinstance(dim, bool):  # var(input, unbiased)
            dim, unbiased = None, dim
        return run(input, dim, _correction(unbiased, correction), keepdim)

    spread.__name__ = spread.__qualname__ = name
    return spread


var, std = _spreads(_var, "var"), _spreads(_std, "std")


def _with_mean(spread: Callable[..., Tensor], name: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """`torch.var_mean` and `torch.std_mean`, in the same overloads."""

    def both(
        input: Tensor, dim: Any = None, unbiased: bool | None = None, keepdim: bool = False, **correction: Any
    ) -> tuple[Tensor, Tensor]:
        axes = None if isinstance(dim, bool) else dim
        return spread(input, dim, unbiased, keepdim, **correction), mean(input, axes, keepdim)

    both.__name__ = both.__qualname__ = name
    return both


var_mean, std_mean = _with_mean(var, "var_mean"), _with_mean(std, "std_mean")


def _norm_gradient(
    g: Tensor, x: Tensor, out: Tensor, shape: torch.Size, ord: float, dim: Axes, keepdim: bool
) -> Tensor:
    g, out = spread(g, shape, dim, keepdim), spread(out, shape, dim, keepdim)
    x = x.conj()  # a norm is not holomorphic: its gradient is along x, and a rule gets the conjugate
    if ord == 2:  # at most 1 times g: in half precision g by a small norm would be infinite
        return ((x / out) * g).masked_fill(out == 0, 0)
    if ord == 1:
        return x.sgn() * g
    if ord == 0:
        return torch.zeros_like(x) * g
    if math.isinf(ord):
        attains = (x.abs() == out) | x.isnan()
        share = attains / attains.sum(reduced_axes(dim, len(shape)), True)
        return x.sgn() * (share * g)
    if ord < 2:  # |x|^(p-2) has a pole at 0, where the subgradient is 0
        power = x.abs().masked_fill(x == 0, 1) ** (ord - 1)
        return (x.sgn() * power * (g / out ** (ord - 1))).masked_fill((out == 0) | (x == 0), 0)
    return (x * x.abs() ** (ord - 2) * (g / out ** (ord - 1))).masked_fill(out == 0, 0)


vector_norm = op(
    lambda x, ord=2, dim=None, keepdim=False, dtype=None: torch.linalg.vector_norm(
        x, ord, dim, keepdim, dtype=dtype
    ),
    name="vector_norm",
    x=_norm_gradient,
)


def norm(input: Tensor, p: Any = "fro", dim: Axes = None, keepdim: bool = False, dtype: Any = None) -> Tensor:
    """`torch.norm`, of vectors.

    Raises:
        NotImplementedError: the nuclear norm, which has no hand-written gradient.
    """
    if isinstance(p, str) and p != "fro":
        raise NotImplementedError(f"bpkit.ops.norm(p={p!r}) has no hand-written gradient; torch.norm has")
    return vector_norm(input, 2 if p in ("fro", None) else p, dim, keepdim, dtype)


def _logsumexp(g: Tensor, input: Tensor, out: Tensor, shape: torch.Size, dim: Axes, keepdim: bool) -> Tensor:
    out = spread(out, shape, dim, keepdim)
    return spread(g, shape, dim, keepdim) * (input - torch.where(out == -torch.inf, 0, out)).exp()


logsumexp = op(
    lambda input, dim, keepdim=False: torch.logsumexp(input, dim, keepdim),
    name="logsumexp",
    holomorphic=False,
    input=_logsumexp,
)


def _product(g: Tensor, input: Tensor, shape: torch.Size, dim: Axes, keepdim: bool) -> Tensor:
    """G times the product of the others: running products from both ends, so that a zero does no harm."""
    if not shape or not input.numel():
        return spread(g, shape, dim, keepdim).expand(shape)
    rank = len(shape)
    flat = input.reshape(-1) if dim is None else input
    axis = 0 if dim is None else reduced_axes(dim, rank)[0]
    ones = torch.ones_like(flat.narrow(axis, 0, 1))
    before = torch.cat((ones, flat.narrow(axis, 0, flat.shape[axis] - 1)), axis).cumprod(axis)
    after = (
        torch.cat((ones, flat.flip(axis).narrow(axis, 0, flat.shape[axis] - 1)), axis)
        .cumprod(axis)
        .flip(axis)
    )
    return spread(g, shape, dim, keepdim) * (before * after).reshape(shape)


_prod = op(
    lambda input, dim, keepdim, dtype: (
        torch.prod(input, dtype=dtype) if dim is None else torch.prod(input, dim, keepdim, dtype=dtype)
    ),
    name="prod",
    input=_product,
)


def prod(input: Tensor, dim: int | None = None, keepdim: bool = False, dtype: Any = None) -> Tensor:
    """`torch.prod`."""
    return _prod(input, dim, keepdim, dtype)


cumsum = op(
    lambda input, dim, dtype=None: torch.cumsum(input, dim, dtype=dtype),
    name="cumsum",
    input=lambda g, dim: g.flip(dim).cumsum(dim).flip(dim) if g.dim() else g,  # flip cannot map a scalar
)
