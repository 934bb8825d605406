"""A linear map along one axis, and its transpose.

    y[p] = Σ_q A[p,q] x[q]            ∂L/∂x[q] = Σ_p A[p,q] δ[p]           p: output, q: input position

Resampling and adaptive means are such maps, one an axis, and each A is a band: an output position reads a few
neighbouring inputs. The product with Aᵀ is taken in blocks of inputs and the outputs that read them, or fused
over the band alone: the outputs that read q are f(q), ..., f(q) + T - 1, and

    ∂L/∂x[q] = Σₜ A[f(q) + t, q] δ[f(q) + t]                               t < T, the most that any q has
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active

from bpkit.core.fuse import MIN_NUMEL, active, formula

# Inputs a block: a matrix product is quicker than its shape suggests, up to about here.
BLOCK = 128

Block = Callable[[int, int], tuple[int, int, Tensor]]


def transpose_along(
    delta: Tensor, dim: int, size: int, weights: Callable[..., Block], *settings: Any
) -> Tensor:
    """Aᵀ δ along `dim`, which gets `size` positions.

    Args:
        delta: what is mapped.
        dim: the axis, not negative.
        size: the number of inputs q.
        weights: `(dtype, device, outputs, size, *settings) -> block`, where `block` is `(q0, q1) -> (p0, p1,
            A[p0:p1, q0:q1])` with every p at which any of those q is read.
        settings: what else decides A.
    """
    key = delta.dtype, delta.device, delta.shape[dim], size, *settings
    if _gathers(delta, dim, size):
        return _from_band(delta, dim, *_band(weights, *key))
    block, parts = weights(*key), []
    for start in range(0, size, BLOCK):
        end = min(start + BLOCK, size)
        first, last, matrix = block(start, end)
        part = delta.narrow(dim, first, last - first)
        if dim == delta.dim() - 1:
            parts.append(part @ matrix)
        else:
            rows = part.reshape(*part.shape[: dim + 1], part.shape[dim + 1 :].numel())
            parts.append((matrix.t() @ rows).reshape(*part.shape[:dim], end - start, *part.shape[dim + 1 :]))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _gathers(delta: Tensor, dim: int, size: int) -> bool:
    """Whether the band is quicker than blocks of the matrix, and may be read off it.

    Fused, 1 M floats with their channels innermost, enlarged bilinearly: 3 ms, and 15 by blocks. Along
    the innermost axis nothing is vectorised, and a product from few outputs to many inputs is quicker.
    """
    return (
        active()
        and type(delta) is Tensor
        and delta.device.type == "cpu"
        and delta.numel() >= MIN_NUMEL
        and not torch.is_grad_enabled()
        and not _are_functorch_transforms_active()
        and not torch._C._len_torch_dispatch_stack()
        and (dim < delta.dim() - 1 or delta.shape[dim] > size)
    )


@functools.lru_cache(maxsize=64)
def _band(
    weights: Callable[..., Block],
    dtype: torch.dtype,
    device: torch.device,
    count: int,
    size: int,
    *settings: Any,
) -> tuple[Tensor, Tensor]:
    """f(q) `[q]` and A[f(q) + t, q] `[t, q]`; kept, because finding them takes 1 to 2 ms."""
    block = weights(dtype, device, count, size, *settings)
    firsts, ends, columns = [], [], []
    for start in range(0, size, BLOCK):
        low, _, matrix = block(start, min(start + BLOCK, size))
        position = torch.arange(len(matrix), device=matrix.device)[:, None]
        read = matrix != 0
        first = torch.where(read, position, len(matrix)).amin(0).clamp(max=len(matrix) - 1)
        firsts.append(low + first)
        ends.append(torch.where(read, position + 1, 0).amax(0) - first)
        columns.append((matrix, first))
    taps = torch.arange(max(1, *(int(end.max()) for end in ends)), device=firsts[0].device)[:, None]
    bands = []
    for matrix, first in columns:
        at = first + taps
        inside = at < len(matrix)
        bands.append(matrix.gather(0, at.clamp(max=len(matrix) - 1)) * inside)
    return torch.cat(firsts), torch.cat(bands, 1)


@formula
def _from_band(delta: Tensor, dim: int, first: Tensor, band: Tensor) -> Tensor:
    along = (-1, *(1,) * (delta.dim() - 1 - dim))
    last, terms = delta.shape[dim] - 1, []
    for tap, weight in enumerate(band.unbind()):
        terms.append(delta.index_select(dim, (first + tap).clamp(max=last)) * weight.reshape(along))
    return sum(terms[1:], terms[0])
