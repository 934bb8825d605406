"""Attention with all of the scores at once, in algebra that is differentiable, can be mapped and compiled.

The derivation of `attention.py` as it stands there; the tiles of `attention_tiles.py` compute the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bpkit.core.precision import widen


@dataclass(frozen=True)
class Scores:
    """How s comes of q and k, and what hides and drops its elements.

    Attributes:
        scale: c.
        causal: hide j > i.
        mask: m, or which keys are seen, `[batch | 1, heads | 1, L | 1, S | 1]`.
        keep: which elements dropout keeps, `[batch, heads, L, S]`.
        factor: by how much those are scaled.
    """

    scale: float
    causal: bool
    mask: Tensor | None
    keep: Tensor | None
    factor: float


def grouped(tensor: Tensor, heads: int) -> Tensor:
    """Keys or values once for each query head that they serve."""
    own = tensor.shape[1]
    if own == heads:
        return tensor
    return tensor.unsqueeze(2).expand(-1, -1, heads // own, -1, -1).flatten(1, 2)


def ungrouped(gradient: Tensor, own: int) -> Tensor:
    """The gradient of `grouped`: the sum over the query heads that each key or value serves."""
    heads = gradient.shape[1]
    return gradient if own == heads else gradient.unflatten(1, (own, heads // own)).sum(2)


def _weights(q: Tensor, k: Tensor, scores: Scores) -> tuple[Tensor, Tensor, Tensor]:
    """The scores `[batch, heads, L, S]`, p, and which rows see no key."""
    s = (q * scores.scale) @ k.mT
    if scores.mask is not None:
        hidden = not scores.mask.is_floating_point()
        s = s.masked_fill(~scores.mask, -math.inf) if hidden else s + scores.mask
    if scores.causal:
        s = s.masked_fill(q.new_ones(s.shape[-2:], dtype=torch.bool).triu(1), -math.inf)
    blind = (s == -math.inf).all(-1, keepdim=True)
    return s, s.masked_fill(blind, 0).softmax(-1).masked_fill(blind, 0), blind


def forward_plain(
    query: Tensor, key: Tensor, value: Tensor, scores: Scores, dropout_p: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """O, λ and z of queries, keys and values `[batch, heads, *, *]`."""
    q, k, v = (widen(each) for each in (query, key, value))
    k, v = grouped(k, q.shape[1]), grouped(v, q.shape[1])
    s, p, blind = _weights(q, k, scores)
    keep = None
    if dropout_p:
        p, keep = torch.native_dropout(p, dropout_p, True)
    logsumexp = s.masked_fill(blind, 0).logsumexp(-1) if k.shape[2] else s.sum(-1)
    return (p @ v).to(query.dtype), logsumexp, keep


def backward_plain(
    g: Tensor, q: Tensor, k: Tensor, v: Tensor, scores: Scores, need: tuple[bool, ...]
) -> list[Tensor | None]:
    """∂L/∂ of q, k, v and m, of which it reads nothing but what they are and δ."""
    heads, own_k, own_v = q.shape[1], k.shape[1], v.shape[1]
    k, v = grouped(k, heads), grouped(v, heads)
    _, p, _ = _weights(q, k, scores)
    dropped, pi = p, g @ v.mT
    if scores.keep is not None:
        dropped, pi = p * scores.keep * scores.factor, pi * scores.keep * scores.factor
    sigma = p * (pi - (p * pi).sum(-1, keepdim=True))
    return [
        (sigma @ k) * scores.scale if need[0] else None,
        ungrouped((sigma.mT @ q) * scores.scale, own_k) if need[1] else None,
        ungrouped(dropped.mT @ g, own_v) if need[2] else None,
        sigma.sum_to_size(scores.mask.shape) if need[3] and scores.mask is not None else None,
    ]
