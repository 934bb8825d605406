"""Losses between embeddings: CosineEmbedding, TripletMargin and its kin with a distance of one's own.

    y[n] = x₁·x₂ / √(M₁ M₂),    Mᵢ = xᵢ·xᵢ + 1e-12                                        n: row
    CosineEmbedding   l[n] = 1 - y for label 1, max(0, y - Δ) for label -1, 0 for any other
                      ∂l/∂x₁[d] = κ (x₂[d] / √(M₁ M₂) - y x₁[d] / M₁),   κ = -1, [y ≥ Δ], 0
    TripletMargin     l[n] = max(0, Δ + d(a, p) - d(a, n)),   d(a, n) the smaller of it and d(p, n) on a swap

The triplets are the distance of `layers/distance.py` and operators on one number a row.

Saved: both inputs and the labels; of a triplet, each difference.
Sources: Chopra, Hadsell & LeCun 2005; Schroff, Kalenichenko & Philbin 2015; Balntas et al. 2016 (swap).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bpkit import ops
from bpkit.core.function import Function
from bpkit.core.module import Handwritten, adopt
from bpkit.core.precision import widen
from bpkit.core.spec import LossSpec, Sample, nbytes, randn
from bpkit.layers.distance import (
    CosineSimilarity,
    PairwiseDistance,
    cosine_similarity,
    pairwise_distance,
)
from bpkit.losses.reduction import MEAN, NONE, code

EPSILON = 1e-12


class CosineEmbeddingFunction(Function):
    """`(x₁ [n, d], x₂ [n, d], t [n], Δ, reduction) -> [] or [n]`; without n for a single row."""

    autocast = {"cpu": "fp32", "cuda": "fp32"}

    @staticmethod
    def forward(input1: Tensor, input2: Tensor, target: Tensor, margin: float, reduction: int) -> Tensor:
        return torch.cosine_embedding_loss(input1, input2, target, margin, reduction)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input1, input2, target, ctx.margin, ctx.reduction = inputs
        ctx.save_for_backward(input1, input2, target)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        first, second, target = ctx.saved_tensors
        x1, x2, label = widen(first), widen(second), target.unsqueeze(-1)
        square1 = (x1 * x1).sum(-1, keepdim=True) + EPSILON
        square2 = (x2 * x2).sum(-1, keepdim=True) + EPSILON
        norm = (square1 * square2).sqrt()
        y = (x1 * x2).sum(-1, keepdim=True) / norm
        share = widen(grad_output)
        if ctx.reduction == NONE:
            share = share.unsqueeze(-1)
        elif ctx.reduction == MEAN:
            share = share / max(1, torch.broadcast_shapes(y.shape, label.shape).numel())
        slope = torch.where((label == -1) & (y - ctx.margin >= 0), share, 0) - torch.where(
            label == 1, share, 0
        )

        def gradient(x: Tensor, other: Tensor, square: Tensor, like: Tensor) -> Tensor:
            across, along = (slope / norm) * other, (slope * y / square) * x
            return (across.sum_to_size(like.shape) - along.sum_to_size(like.shape)).to(like.dtype)

        return (
            gradient(x1, x2, square1, first) if ctx.needs_input_grad[0] else None,
            gradient(x2, x1, square2, second) if ctx.needs_input_grad[1] else None,
            None,
            None,
            None,
        )


def cosine_embedding_loss(
    input1: Tensor,
    input2: Tensor,
    target: Tensor,
    margin: float = 0,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """`torch.nn.functional.cosine_embedding_loss` with a hand-written backward.

    Args:
        input1: `[n, d]` or `[d]`.
        input2: the same.
        target: 1 or -1, `[n]` or `[]`.
        margin: Δ, the cosine that two rows with label -1 may have.
        size_average: deprecated, see `reduction`.
        reduce: deprecated, see `reduction`.
        reduction: `"none"`, `"mean"` or `"sum"`.
    """
    reduced = code(reduction, size_average, reduce)
    return CosineEmbeddingFunction.call(input1, input2, target, margin, reduced)


def triplet_margin_loss(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    margin: float = 1.0,
    p: float = 2,
    eps: float = 1e-6,
    swap: bool = False,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """`torch.nn.functional.triplet_margin_loss` with hand-written backwards.

    Args:
        anchor: `[*, d]`.
        positive: what should be near it, `[*, d]`.
        negative: what should be far from it, `[*, d]`.
        margin: Δ.
        p: the norm of the distances.
        eps: added to each difference, so that no norm is 0.
        swap: whether the distance from positive to negative counts where it is the smaller one.
        size_average: deprecated, see `reduction`.
        reduce: deprecated, see `reduction`.
        reduction: `"none"`, `"mean"` or `"sum"`.
    """
    reduced = code(reduction, size_average, reduce)
    if margin <= 0:
        raise ValueError(f"margin must be greater than 0, got {margin}")
    _same_rank(anchor, positive, negative)
    device = anchor.device.type
    if torch.is_autocast_enabled(device):  # torch runs all of it in float32
        anchor, positive, negative = (ops.to(each, torch.float32) for each in (anchor, positive, negative))
    return _triplet(
        anchor, positive, negative, lambda a, b: pairwise_distance(a, b, p, eps), margin, swap, reduced
    )


def triplet_margin_with_distance_loss(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    *,
    distance_function: Callable[[Tensor, Tensor], Tensor] | None = None,
    margin: float = 1.0,
    swap: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """`torch.nn.functional.triplet_margin_with_distance_loss`; a distance brings its own backward."""
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"{reduction} is not a valid value for reduction")
    if margin <= 0:
        raise ValueError(f"margin must be greater than 0, got {margin}")
    _same_rank(anchor, positive, negative)
    reduced = code(reduction, None, None)
    distance: Any = _twin(distance_function) or distance_function
    return _triplet(anchor, positive, negative, distance, margin, swap, reduced)


Distance = Callable[[Tensor, Tensor], Tensor]


def _twin(distance: Distance | None) -> Distance | None:
    """Bpkit's own in the place of torch's; None for anybody else's."""
    if distance is None or distance is torch.pairwise_distance:
        return pairwise_distance
    if distance is torch.cosine_similarity:
        return cosine_similarity
    if type(distance) is nn.PairwiseDistance:
        return PairwiseDistance(distance.norm, distance.eps, distance.keepdim)
    if type(distance) is nn.CosineSimilarity:
        return CosineSimilarity(distance.dim, distance.eps)
    ours = isinstance(distance, Handwritten) or str(getattr(distance, "__module__", "")).startswith("bpkit.")
    return distance if ours else None


def _same_rank(anchor: Tensor, positive: Tensor, negative: Tensor) -> None:
    if not anchor.dim() == positive.dim() == negative.dim():
        raise RuntimeError(
            "The anchor, positive, and negative tensors are expected to have the same number of "
            f"dimensions, but got: anchor {anchor.dim()}D, positive {positive.dim()}D, "
            f"and negative {negative.dim()}D inputs"
        )


def _triplet(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    distance: Callable[[Tensor, Tensor], Tensor],
    margin: float,
    swap: bool,
    reduction: int,
) -> Tensor:
    near, far = distance(anchor, positive), distance(anchor, negative)
    if swap:
        far = ops.minimum(far, distance(positive, negative))
    terms: Tensor = ops.clamp(ops.sub(ops.add(near, margin), far), min=0)
    if reduction == NONE:
        return terms
    return ops.mean(terms) if reduction == MEAN else ops.sum(terms)


class CosineEmbeddingLoss(Handwritten, nn.CosineEmbeddingLoss):
    """`torch.nn.CosineEmbeddingLoss` with a hand-written backward."""

    def forward(self, input1: Tensor, input2: Tensor, target: Tensor) -> Tensor:
        return cosine_embedding_loss(input1, input2, target, self.margin, reduction=self.reduction)


class TripletMarginLoss(Handwritten, nn.TripletMarginLoss):
    """`torch.nn.TripletMarginLoss` with hand-written backwards."""

    def forward(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        return triplet_margin_loss(
            anchor,
            positive,
            negative,
            self.margin,
            self.p,
            self.eps,
            self.swap,
            reduction=self.reduction,
        )


class TripletMarginWithDistanceLoss(Handwritten, nn.TripletMarginWithDistanceLoss):
    """`torch.nn.TripletMarginWithDistanceLoss` with hand-written backwards."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        adopt(self, {nn.PairwiseDistance: PairwiseDistance, nn.CosineSimilarity: CosineSimilarity})

    def natives(self) -> Iterable[tuple[str, str]]:
        """See `Handwritten`."""
        if not isinstance(self.distance_function, nn.Module) and _twin(self.distance_function) is None:
            yield "distance_function", "a function that has no hand-written twin; it runs as written"

    def forward(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        return triplet_margin_with_distance_loss(
            anchor,
            positive,
            negative,
            distance_function=self.distance_function,
            margin=self.margin,
            swap=self.swap,
            reduction=self.reduction,
        )


def _pairs() -> Iterable[Sample]:
    inputs = (randn(4, 3), randn(4, 3, seed=1), torch.tensor([1, -1, -1, 1]))
    for margin, reduction in ((0.0, "mean"), (-0.5, "sum"), (0.0, "none")):
        kwargs = {"margin": margin, "reduction": reduction}
        yield Sample(kwargs=kwargs, inputs=inputs, label=reduction)


def _triplets(*settings: dict[str, Any]) -> Iterable[Sample]:
    inputs = tuple(randn(4, 3, seed=seed) for seed in range(3))
    tried: list[dict[str, Any]] = [{}, {"reduction": "none", "swap": True}, {"reduction": "sum"}]
    for kwargs in (*tried, *settings):
        yield Sample(kwargs=kwargs, inputs=inputs, label=", ".join(kwargs))


def _triplet_bytes(module: Any, inputs: tuple[Any, ...], output: Tensor) -> int:
    """Up to three differences, and eight numbers a row."""
    return nbytes(*inputs) + 8 * nbytes(inputs[0][..., 0])


SPECS = (
    LossSpec(
        name="cosine_embedding",
        module=CosineEmbeddingLoss,
        reference=nn.CosineEmbeddingLoss,
        samples=_pairs,
        saves="both inputs and target",
        saved_bytes=lambda module, inputs, output: nbytes(*inputs),
        aliases=("CosineEmbeddingLoss", "cosine_embedding_loss"),
        summary="small angles for label 1, large ones for -1",
    ),
    LossSpec(
        name="triplet_margin",
        module=TripletMarginLoss,
        reference=nn.TripletMarginLoss,
        samples=lambda: _triplets({"p": 3.0}, {"margin": 0.3}),
        saves="a difference for each distance",
        saved_bytes=_triplet_bytes,
        aliases=("TripletMarginLoss", "triplet_margin_loss"),
        summary="nearer to one than to the other",
    ),
    LossSpec(
        name="triplet_margin_with_distance",
        module=TripletMarginWithDistanceLoss,
        reference=nn.TripletMarginWithDistanceLoss,
        samples=_triplets,
        saves="what the distance keeps",
        saved_bytes=_triplet_bytes,
        aliases=("TripletMarginWithDistanceLoss", "triplet_margin_with_distance_loss"),
        summary="nearer to one than to the other, by any distance",
    ),
)
