"""A linear map along one axis, and its transpose.

    y[p] = Σ_q A[p,q] x[q]            ∂L/∂x[q] = Σ_p A[p,q] δ[p]           p: output, q: input position

Resampling and adaptive means are such maps, one an axis, and each A is a band: an output position reads a few
neighbouring inputs. The product with Aᵀ is taken in blocks of inputs and the outputs that read them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Inputs a block: a matrix product is quicker than its shape suggests, up to about here.
BLOCK = 128

Block = Callable[[int, int], tuple[int, int, Tensor]]


def transpose_along(delta: Tensor, dim: int, size: int, block: Block) -> Tensor:
    """Aᵀ δ along `dim`, which gets `size` positions.

    Args:
        delta: what is mapped.
        dim: the axis, not negative.
        size: the number of inputs q.
        block: `(q0, q1) -> (p0, p1, A[p0:p1, q0:q1])` with every p at which any of those q is read.
    """
    parts = []
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
