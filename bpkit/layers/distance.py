"""CosineSimilarity and PairwiseDistance: how far two vectors are apart.

    y = Σ_d x₁[d] x₂[d] / (m₁ m₂),    mᵢ = max(‖xᵢ‖, ε)                  d: the axis of the vectors
    ∂y/∂x₁[d] = x₂[d] / (m₁ m₂) - y x₁[d] / (m₁ ‖x₁‖)

and the same with 1 and 2 exchanged; the second term is 0 where ‖x₁‖ is. As torch has it, it is there as
well where ε cut the norm. The distance y = ‖x₁ - x₂ + ε‖ₚ is a difference and the norm of `bpkit.ops`,
which keeps one tensor where a Function of both would keep two. All pairs of rows of one matrix,

    y[i,j] = ‖x[i] - x[j]‖ₚ,  i < j        ∂L/∂x[i] = Σ_j δ[i,j] ∂‖v‖ₚ/∂v at v = x[i] - x[j]

Saved: x₁ and x₂ (torch keeps their norms and quotients as well); x alone for all pairs.
Sources: Salton, Wong & Yang, 1975; Minkowski, "Geometrie der Zahlen", 1896.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bpkit import ops
from bpkit.core.function import Function
from bpkit.core.module import Handwritten
from bpkit.core.precision import widen
from bpkit.core.spec import LayerSpec, Sample, nbytes, randn

# The elements of the differences that all pairs form at a time: 16 MiB of float32.
BLOCK = 1 << 22


class CosineSimilarityFunction(Function):
    """`(x₁ [*, d, *], x₂ [*, d, *], axis, ε) -> [*, *]`."""

    autocast = {"cuda": "fp32"}

    @staticmethod
    def forward(x1: Tensor, x2: Tensor, dim: int, eps: float) -> Tensor:
        return torch.cosine_similarity(x1, x2, dim, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x1, x2, ctx.dim, ctx.eps = inputs
        ctx.save_for_backward(x1, x2)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        first, second = ctx.saved_tensors
        x1, x2 = torch.broadcast_tensors(widen(first), widen(second))
        axis = ctx.dim % max(x1.dim(), 1)
        norms = [torch.linalg.vector_norm(each, 2, axis, keepdim=True) for each in (x1, x2)]
        cut1, cut2 = (torch.where(norm < ctx.eps, norm - norm.detach() + ctx.eps, norm) for norm in norms)
        y = (x1 * x2).sum(axis, keepdim=True) / (cut1 * cut2)
        g = grad_output.unsqueeze(axis)
        across = g / (cut1 * cut2)

        def gradient(x: Tensor, other: Tensor, norm: Tensor, cut: Tensor, like: Tensor) -> Tensor:
            along = g * y / (cut * torch.where(norm == 0, 1, norm))
            return (across * other - along * x).sum_to_size(like.shape).to(like.dtype)

        return (
            gradient(x1, x2, norms[0], cut1, first) if ctx.needs_input_grad[0] else None,
            gradient(x2, x1, norms[1], cut2, second) if ctx.needs_input_grad[1] else None,
            None,
            None,
        )


class PdistFunction(Function):
    """`(x [n, d], p) -> [n (n - 1) / 2]`, the distances of rows i < j in order."""

    autocast = {"cuda": "fp32"}

    @staticmethod
    def forward(input: Tensor, p: float) -> Tensor:
        return torch.pdist(input, p)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, ctx.p = inputs
        ctx.save_for_backward(input)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, None]:
        (input,) = ctx.saved_tensors
        rows, width = input.shape
        if rows < 2 or not width:
            return torch.zeros_like(input), None
        i, j = torch.triu_indices(rows, rows, 1, device=input.device)
        gradient = torch.zeros_like(input)
        for some in torch.arange(len(i), device=i.device).split(max(1, BLOCK // width)):
            slope = _norm_slope(input[i[some]] - input[j[some]], ctx.p) * grad_output[some].unsqueeze(1)
            gradient = gradient.index_add(0, i[some], slope).index_add(0, j[some], -slope)
        return gradient, None


def _norm_slope(v: Tensor, p: float) -> Tensor:
    """∂‖v‖ₚ/∂v along the last axis: sign(v) (|v| / ‖v‖)ᵖ⁻¹, and 0 where a power of 0 has a pole."""
    if p == 0:
        return 0 * v
    if p == 1:
        return v.sgn()
    norm = torch.linalg.vector_norm(v, p, -1, keepdim=True)
    norm = torch.where(norm == 0, 1, norm)
    if p == 2:
        return v / norm
    if math.isinf(p):
        return v.sgn() * (v.abs() == norm)  # every one that attains it, as torch's pdist has it
    size = torch.where(v == 0, 1, v.abs())
    return torch.where(v == 0, 0, v.sgn() * (size / norm) ** (p - 1))


def cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """`torch.nn.functional.cosine_similarity` with a hand-written backward.

    Args:
        x1: `[*, d, *]`.
        x2: the same, or a shape that broadcasts with it.
        dim: the axis of the vectors.
        eps: the least norm that is divided by.

    Returns:
        The broadcast shape without its axis `dim`.
    """
    if not (x1.is_floating_point() and x2.is_floating_point()):
        kind = torch.result_type(x1, x2)
        if kind.is_floating_point:
            x1, x2 = ops.to(x1, kind), ops.to(x2, kind)
    return CosineSimilarityFunction.call(x1, x2, dim, eps)


def pairwise_distance(
    x1: Tensor, x2: Tensor, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False
) -> Tensor:
    """`torch.nn.functional.pairwise_distance` with hand-written backwards.

    Args:
        x1: `[*, d]`.
        x2: the same, or a shape that broadcasts with it.
        p: which norm.
        eps: added to each difference, so that no norm is 0.
        keepdim: whether the last axis stays, at size 1.
    """
    difference = ops.add(ops.sub(x1, x2), eps)
    return ops.vector_norm(difference, p, -1, keepdim)


def pdist(input: Tensor, p: float = 2.0) -> Tensor:
    """`torch.nn.functional.pdist` with a hand-written backward, which torch has but once.

    Args:
        input: `[n, d]`.
        p: which norm.

    Returns:
        `[n (n - 1) / 2]`: the distances of all pairs of rows.
    """
    return PdistFunction.call(input, p)


class CosineSimilarity(Handwritten, nn.CosineSimilarity):
    """`torch.nn.CosineSimilarity` with a hand-written backward."""

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        return cosine_similarity(x1, x2, self.dim, self.eps)


class PairwiseDistance(Handwritten, nn.PairwiseDistance):
    """`torch.nn.PairwiseDistance` with hand-written backwards."""

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        return pairwise_distance(x1, x2, self.norm, self.eps, self.keepdim)


def _cosines() -> Iterable[Sample]:
    yield Sample(inputs=(randn(4, 3), randn(4, 3, seed=1)))
    yield Sample(kwargs={"dim": -1}, inputs=(randn(2, 1, 3), randn(4, 3, seed=1)), label="broadcast")


def _distances() -> Iterable[Sample]:
    for p in (2.0, 1.0, 3.5, math.inf):
        yield Sample(kwargs={"p": p}, inputs=(randn(4, 3), randn(4, 3, seed=1)), label=f"p={p}")
    yield Sample(kwargs={"keepdim": True}, inputs=(randn(2, 4, 3), randn(3, seed=1)), label="broadcast")


SPECS = (
    LayerSpec(
        name="CosineSimilarity",
        module=CosineSimilarity,
        reference=nn.CosineSimilarity,
        samples=_cosines,
        saves="both inputs",
        saved_bytes=lambda module, inputs, output: nbytes(*inputs),
        aliases=("cosine_similarity",),
        summary="cosine of the angle between vectors",
    ),
    LayerSpec(
        name="PairwiseDistance",
        module=PairwiseDistance,
        reference=nn.PairwiseDistance,
        samples=_distances,
        saves="the difference, and the output",
        saved_bytes=lambda module, inputs, output: nbytes(torch.broadcast_tensors(*inputs)[0], output),
        aliases=("pairwise_distance",),
        summary="norm of a difference",
    ),
)
