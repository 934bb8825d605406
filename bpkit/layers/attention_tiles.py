"""Attention tile by tile, in the notation of `attention.py`: of the scores only one tile exists at a time.

A tile is some heads, of one batch or all those of several, by some rows of queries, and the keys that those
rows may see. As it has its rows whole, each is normalised by itself; only ∂L/∂k, ∂L/∂v and ∂L/∂m add up over
tiles.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bpkit.core.precision import widen
from bpkit.layers.attention_plain import Scores, grouped, ungrouped

# Scores to a tile, 512 KiB of them in float32. Forward and backward against torch's, one thread, 64 features,
# at 2^15, 2^16, 2^17, 2^18: 64 x 8 heads of 64: 1.24, 1.01, 0.94, 0.93; 8 of 2,048: 1.43, 1.38, 1.26, 1.27.
TILE = 1 << 17
# Causal tiles leave out the keys that none of their rows sees: the fewer the rows, the more of those (2 x 8
# heads of 1,024 in tiles of 128 rows: 1.17; of 256 in one tile, where nothing can be left out: 1.47).
CAUSAL_ROWS = 64


@dataclass(frozen=True)
class Tile:
    """Batches, heads and rows of the queries, and the number of keys that those rows may see."""

    batches: slice
    heads: slice
    rows: slice
    keys: int

    def of(self, tensor: Tensor, rows: slice) -> Tensor:
        """`[batch, heads, L, d]` as `[n, rows, d]`."""
        return tensor[self.batches, self.heads, rows].flatten(0, 1)

    def of_mask(self, mask: Tensor) -> Tensor:
        """The mask's part, `[n | 1, rows | 1, keys | 1]`."""
        batch, heads, rows, keys = mask.shape
        part = mask[
            self.batches if batch > 1 else slice(None),
            self.heads if heads > 1 else slice(None),
            self.rows if rows > 1 else slice(None),
            : self.keys if keys > 1 else None,
        ]
        if batch == 1 and heads == 1:
            return part[0]
        shape = (self.batches.stop - self.batches.start, self.heads.stop - self.heads.start)
        return part.expand(*shape, -1, -1).flatten(0, 1)


def _tiles(q: Tensor, keys: int, causal: bool) -> Iterator[Tile]:
    batch, heads, rows, _ = q.shape
    height = max(1, min(rows, TILE // max(1, keys)))
    if causal:
        height = min(height, max(CAUSAL_ROWS, height // 4))
    some = max(1, min(heads, TILE // max(1, height * keys)))
    several = max(1, min(batch, TILE // max(1, height * keys * heads))) if some == heads else 1
    for b in range(0, batch, several):
        for h in range(0, heads, some):
            for i in range(0, rows, height):
                end = min(i + height, rows)
                yield Tile(
                    slice(b, min(b + several, batch)),
                    slice(h, min(h + some, heads)),
                    slice(i, end),
                    min(end, keys) if causal else keys,
                )


def _tile_scores(tile: Tile, q: Tensor, k: Tensor, scores: Scores, minus: Tensor) -> Tensor:
    """S less one number a row, `[n, rows, keys]`, in memory of its own."""
    start = -minus
    mask = None if scores.mask is None else tile.of_mask(scores.mask)
    if mask is not None and mask.is_floating_point():
        start = mask + start
    s = torch.baddbmm(start, q, k.mT, alpha=scores.scale)
    if mask is not None and not mask.is_floating_point():
        s.masked_fill_(~mask, -math.inf)
    first = tile.rows.start
    if scores.causal and tile.keys > first:
        right = s[:, :, first:]  # all that is left of this is seen
        right.masked_fill_(q.new_ones(right.shape[1:], dtype=torch.bool).triu_(1), -math.inf)
    return s


def forward_tiles(query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> tuple[Tensor, Tensor]:
    """O and λ of queries, keys and values `[batch, heads, *, *]`."""
    q, k, v = (widen(each) for each in (query, key, value))
    mask = scores.mask
    if mask is not None and mask.is_floating_point():
        scores = Scores(scores.scale, scores.causal, widen(mask), scores.keep, scores.factor)
    k, v = grouped(k, q.shape[1]), grouped(v, q.shape[1])
    output = _laid_out_as(query, v.shape[-1])
    logsumexp = q.new_zeros(q.shape[:3])
    if not k.shape[2]:
        return output, logsumexp
    for tile in _tiles(q, k.shape[2], scores.causal):
        keys = slice(0, tile.keys)
        rows = tile.of(q, tile.rows)
        s = _tile_scores(tile, rows, tile.of(k, keys), scores, rows.new_zeros(*rows.shape[:2], 1))
        most = s.amax(-1, keepdim=True)
        most = most.masked_fill_(most == -math.inf, 0)
        p = s.sub_(most).exp_()
        total = p.sum(-1, keepdim=True)
        total.masked_fill_(total == 0, 1)
        if scores.keep is not None:
            p.mul_(tile.of(scores.keep[..., keys], tile.rows))
        mean = torch.bmm(p, tile.of(v, keys)).mul_(scores.factor / total)
        part = output[tile.batches, tile.heads, tile.rows]
        part.copy_(mean.reshape(part.shape))
        tile.of(logsumexp[..., None], tile.rows).copy_(most + total.log())
    return output, logsumexp


def _laid_out_as(query: Tensor, width: int) -> Tensor:
    """Zeros `[batch, heads, L, e]`, the axes in `query`'s order in memory, as torch's kernel has them."""
    order = sorted(range(3), key=query.stride, reverse=True)
    zeros = query.new_zeros(*(query.shape[axis] for axis in order), width)
    return zeros.permute(*(order.index(axis) for axis in range(3)), 3)


def backward_tiles(
    g: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scores: Scores,
    delta: Tensor | None,
    logsumexp: Tensor,
    need: tuple[bool, ...],
) -> list[Tensor | None]:
    """∂L/∂ of q, k, v and m. Without `delta` Δ is the sum over the row, rather than δ by o."""
    heads, own_k, own_v = q.shape[1], k.shape[1], v.shape[1]
    k, v = grouped(k, heads), grouped(v, heads)
    grad_q, grad_k, grad_v = (
        torch.zeros_like(each, memory_format=torch.contiguous_format) if wanted else None
        for each, wanted in zip((q, k, v), need, strict=False)
    )
    mask = scores.mask
    grad_mask = torch.zeros_like(mask) if need[3] and mask is not None else None
    through_p = need[0] or need[1] or need[3]
    for tile in _tiles(q, k.shape[2], scores.causal) if k.shape[2] else ():
        keys = slice(0, tile.keys)
        q_rows, g_rows, k_rows, v_rows = (
            tile.of(each, part) for each, part in ((q, tile.rows), (g, tile.rows), (k, keys), (v, keys))
        )
        p = _tile_scores(tile, q_rows, k_rows, scores, tile.of(logsumexp[..., None], tile.rows)).exp_()
        keep = None if scores.keep is None else tile.of(scores.keep[..., keys], tile.rows)
        if grad_v is not None:
            dropped = p if keep is None else p * keep
            tile.of(grad_v, keys).baddbmm_(dropped.mT, g_rows, alpha=scores.factor)
        if not through_p:
            continue
        if delta is not None:
            sigma = torch.baddbmm(tile.of(delta, tile.rows), g_rows, v_rows.mT, beta=-1).mul_(p)
        else:
            sigma = torch.bmm(g_rows, v_rows.mT)
            if keep is not None:
                sigma.mul_(keep).mul_(scores.factor)
            total = p.sum(-1, keepdim=True)  # 1, but for what large scores lose beside λ
            total.masked_fill_(total == 0, 1)
            sigma.sub_((p * sigma).sum(-1, keepdim=True).div_(total)).mul_(p)
        if grad_q is not None:
            tile.of(grad_q, tile.rows).baddbmm_(sigma, k_rows, beta=0, alpha=scores.scale)
        if grad_k is not None:
            tile.of(grad_k, keys).baddbmm_(sigma.mT, q_rows, alpha=scores.scale)
        if grad_mask is not None:
            _add_tile(grad_mask, tile, sigma)
    if grad_k is not None:
        grad_k = ungrouped(grad_k, own_k)
    if grad_v is not None:
        grad_v = ungrouped(grad_v, own_v)
    return [grad_q, grad_k, grad_v, grad_mask]


def _add_tile(grad_mask: Tensor, tile: Tile, sigma: Tensor) -> None:
    """Add σ `[n, rows, keys]` to the gradient of the mask, summed where the mask was broadcast."""
    batch, heads, rows, keys = grad_mask.shape
    part = grad_mask[
        tile.batches if batch > 1 else slice(None),
        tile.heads if heads > 1 else slice(None),
        tile.rows if rows > 1 else slice(None),
        : tile.keys if keys > 1 else None,
    ]
    shape = (tile.batches.stop - tile.batches.start, tile.heads.stop - tile.heads.start)
    part.add_(sigma.unflatten(0, shape).sum_to_size(part.shape))
