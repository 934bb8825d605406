"""Scaled dot-product attention: each query takes a mean of the values, weighted by its likeness to the keys.

    s[i,j] = c Σ_d q[i,d] k[j,d] + m[i,j]                 i: query, j: key, d: feature, e: value feature
    p[i,j] = exp(s[i,j] - λ[i]),   λ[i] = ln Σⱼ exp(s[i,j])
    o[i,e] = Σⱼ p[i,j] z[i,j] v[j,e],   z[i,j] ~ Bernoulli(1 - r) / (1 - r), or 1 without dropout

for every head of every batch by itself; m is a mask, -∞ where a key is hidden, and causal attention hides
j > i. With δ = ∂L/∂o, and since ∂p[i,j]/∂s[i,l] = p[i,j] ([j = l] - p[i,l]):

    ∂L/∂v[j,e] = Σᵢ p[i,j] z[i,j] δ[i,e]
    π[i,j] = z[i,j] Σₑ δ[i,e] v[j,e]                      ∂L/∂p
    σ[i,j] = p[i,j] (π[i,j] - Δ[i])                       ∂L/∂s,  the gradient of m as well
    Δ[i] = Σⱼ p[i,j] π[i,j] = Σₑ δ[i,e] o[i,e]
    ∂L/∂q[i,d] = c Σⱼ σ[i,j] k[j,d]                       ∂L/∂k[j,d] = c Σᵢ σ[i,j] q[i,d]

Nothing of the size of s is kept: a tile of rows of p follows again from q, k and λ, and Δ from o; in low
precision, where o is rounded, and with dropout Δ is the sum over the tile's row. Of a row that sees no key,
o is 0 (as torch has it), and so are its gradients.

Saved: q, k, v, m, λ (one number a query), and o where Δ is taken from it. The dropout mask is drawn again in
the backward, from the state that torch's generator had (on CPU; elsewhere, under `torch.func` and when
compiling it is kept, one byte a pair). A backward that is itself differentiated, and one that is transformed
or compiled, has all of s at once.
Source: Vaswani et al., "Attention is all you need", 2017; Dao, Fu, Ermon, Rudra & Ré, "FlashAttention",
https://arxiv.org/abs/2205.14135, appendix B.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bpkit.core.function import Function
from bpkit.core.precision import LOW_PRECISION, widen
from bpkit.layers.recurrent import may_write, transformed

# Scores to a tile, 512 KiB of them in float32. Forward and backward against torch's, one thread, 64 features,
# at 2^15, 2^16, 2^17, 2^18: 64 x 8 heads of 64: 1.24, 1.01, 0.94, 0.93; 8 of 2,048: 1.43, 1.38, 1.26, 1.27.
TILE = 1 << 17
# Causal tiles leave out the keys that none of their rows sees: the fewer the rows, the more of those (2 x 8
# heads of 1,024 in tiles of 128 rows: 1.17; of 256 in one tile, where nothing can be left out: 1.47).
CAUSAL_ROWS = 64
# Both kinds of vmap refuse to draw; what is drawn again is no draw.
_VMAPS = torch._C.DispatchKeySet(torch._C._parse_dispatch_key("VmapMode")).add(  # type: ignore[arg-type]
    torch._C.DispatchKey.FuncTorchVmapMode
)


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


class AttentionFunction(Function):
    """`(q [*, h, L, d], k [*, h', S, d], v [*, h", S, e], m, r, causal, c, state) -> (o [*, h, L, e], λ, z)`.

    h' and h" divide h. `state` is the generator that z is drawn from again; without one z is an output.
    """

    autocast = {"cpu": "lower", "cuda": "lower"}

    @staticmethod
    def forward(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        dropout_p: float,
        causal: bool,
        scale: float,
        state: torch.Generator | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = _four(query), _four(key), _four(value)
        m = _four_mask(mask, query.shape)
        lead = query.shape[:-2]
        none = q.new_zeros(0, dtype=torch.bool)
        if not may_write():
            output, logsumexp, keep = _forward_plain(q, k, v, Scores(scale, causal, m, None, 1.0), dropout_p)
            keep = none if keep is None else keep.reshape(*lead, *keep.shape[2:])
        elif dropout_p == 0 and _kernel_takes(q, k, v):
            additive = m if m is None or m.is_floating_point() else _additive(m, q.dtype)
            output, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                *(each if each.stride(-1) == 1 else each.contiguous() for each in (q, k, v)),
                0.0,
                causal,
                attn_mask=additive,
                scale=scale,
            )
            keep = none
        else:
            drawn = _draw((*q.shape[:3], k.shape[2]), dropout_p, q.device, None)
            scores = Scores(scale, causal, m, drawn, _factor(dropout_p))
            output, logsumexp = _forward_tiles(q, k, v, scores)
            keep = none if state is not None or drawn is None else drawn.reshape(*lead, *drawn.shape[2:])
        shape = (*lead, *output.shape[2:])
        return output.reshape(shape), logsumexp.reshape(shape[:-1]), keep

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        query, key, value, mask, ctx.dropout_p, ctx.causal, ctx.scale, ctx.state = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        rounded = ctx.dropout_p > 0 or query.dtype in LOW_PRECISION
        ctx.save_for_backward(query, key, value, mask, None if rounded else output[0], *output[1:])

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad_output is None:
            return (None,) * 8
        query, key, value, mask, output, logsumexp, keep = ctx.saved_tensors
        need = ctx.needs_input_grad[:4]
        q, k, v, g = (widen(_four(each)) for each in (query, key, value, grad_output))
        m = _four_mask(mask, query.shape)
        m = widen(m) if m is not None and m.is_floating_point() else m
        if ctx.state is not None:
            drawn = _draw((*q.shape[:3], k.shape[2]), ctx.dropout_p, q.device, ctx.state.clone_state())
        else:
            drawn = _four(keep) if ctx.dropout_p else None
        scores = Scores(ctx.scale, ctx.causal, m, drawn, _factor(ctx.dropout_p))
        if may_write():
            delta = None if output is None else (g * _four(output)).sum(-1, keepdim=True)
            gradients = _backward_tiles(g, q, k, v, scores, delta, logsumexp.reshape(q.shape[:3]), need)
        else:
            gradients = _backward_plain(g, q, k, v, scores, need)
        likes = (query, key, value)
        back = [
            None if each is None else each.reshape(like.shape).to(like.dtype)
            for each, like in zip(gradients, likes, strict=False)
        ]
        grad_mask = gradients[3]
        if grad_mask is not None:
            grad_mask = _like_mask(grad_mask, mask, query.shape)
        return (*back, grad_mask, None, None, None, None)


def _factor(dropout_p: float) -> float:
    return 0.0 if dropout_p == 1 else 1 / (1 - dropout_p)


def _draw(
    shape: tuple[int, ...], dropout_p: float, device: torch.device, state: torch.Generator | None
) -> Tensor | None:
    """Torch's own dropout mask of this shape, None if there is none."""
    if dropout_p == 0:
        return None
    if dropout_p == 1:  # torch draws nothing
        return torch.zeros(shape, dtype=torch.bool, device=device)
    if state is None:
        return torch.empty(shape, dtype=torch.bool, device=device).bernoulli_(1 - dropout_p)
    with torch._C._ExcludeDispatchKeyGuard(_VMAPS):
        return torch.empty(shape, dtype=torch.bool, device=device).bernoulli_(1 - dropout_p, generator=state)


def _four(tensor: Tensor) -> Tensor:
    """`[*, h, L, d]` as `[batch, h, L, d]`: a view, unless more than two leading axes are laid out oddly."""
    if tensor.dim() == 4:
        return tensor
    *lead, rows, width = tensor.shape
    return tensor.reshape(math.prod(lead[:-1]), lead[-1] if lead else 1, rows, width)


def _four_mask(mask: Tensor | None, shape: torch.Size) -> Tensor | None:
    """The mask of queries of `shape` with four axes, each its full size or 1."""
    if mask is None:
        return None
    full = mask[(None,) * (len(shape) - mask.dim())] if mask.dim() < len(shape) else mask
    if len(shape) > 4:
        outer = full.shape[:-3]
        full = full.expand(*(shape[:-3] if math.prod(outer) > 1 else outer), *full.shape[-3:])
    return _four(full)


def _like_mask(gradient: Tensor, mask: Tensor, shape: torch.Size) -> Tensor:
    """The gradient of `_four_mask(mask, shape)` summed to that of `mask`."""
    if len(shape) > 4 and gradient.shape[0] > 1:
        gradient = gradient.reshape(*shape[:-3], *gradient.shape[1:]).sum_to_size(
            (1,) * (len(shape) - mask.dim()) + tuple(mask.shape)
        )
    return gradient.reshape(mask.shape).to(mask.dtype)


def _additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, -math.inf)


def _kernel_takes(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether torch's fused CPU kernel computes this forward."""
    return (
        q.device.type == "cpu"
        and q.shape[-1] == v.shape[-1]
        and k.shape[1] == v.shape[1]
        and min(q.numel(), k.numel(), q.shape[1] * k.shape[1]) > 0
    )


# All of s at once, in algebra that is differentiable, can be mapped and compiled.


def _grouped(tensor: Tensor, heads: int) -> Tensor:
    """Keys or values once for each query head that they serve."""
    own = tensor.shape[1]
    if own == heads:
        return tensor
    return tensor.unsqueeze(2).expand(-1, -1, heads // own, -1, -1).flatten(1, 2)


def _ungrouped(gradient: Tensor, own: int) -> Tensor:
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


def _forward_plain(
    query: Tensor, key: Tensor, value: Tensor, scores: Scores, dropout_p: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    q, k, v = (widen(each) for each in (query, key, value))
    k, v = _grouped(k, q.shape[1]), _grouped(v, q.shape[1])
    s, p, blind = _weights(q, k, scores)
    keep = None
    if dropout_p:
        p, keep = torch.native_dropout(p, dropout_p, True)
    logsumexp = s.masked_fill(blind, 0).logsumexp(-1) if k.shape[2] else s.sum(-1)
    return (p @ v).to(query.dtype), logsumexp, keep


def _backward_plain(
    g: Tensor, q: Tensor, k: Tensor, v: Tensor, scores: Scores, need: tuple[bool, ...]
) -> list[Tensor | None]:
    heads, own_k, own_v = q.shape[1], k.shape[1], v.shape[1]
    k, v = _grouped(k, heads), _grouped(v, heads)
    _, p, _ = _weights(q, k, scores)
    dropped, pi = p, g @ v.mT
    if scores.keep is not None:
        dropped, pi = p * scores.keep * scores.factor, pi * scores.keep * scores.factor
    sigma = p * (pi - (p * pi).sum(-1, keepdim=True))
    return [
        (sigma @ k) * scores.scale if need[0] else None,
        _ungrouped((sigma.mT @ q) * scores.scale, own_k) if need[1] else None,
        _ungrouped(dropped.mT @ g, own_v) if need[2] else None,
        sigma.sum_to_size(scores.mask.shape) if need[3] and scores.mask is not None else None,
    ]


# Tile by tile. A tile is some heads, of one batch or all those of several, by some rows of queries.


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


def _forward_tiles(query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> tuple[Tensor, Tensor]:
    q, k, v = (widen(each) for each in (query, key, value))
    mask = scores.mask
    if mask is not None and mask.is_floating_point():
        scores = Scores(scores.scale, scores.causal, widen(mask), scores.keep, scores.factor)
    k, v = _grouped(k, q.shape[1]), _grouped(v, q.shape[1])
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


def _backward_tiles(
    g: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scores: Scores,
    delta: Tensor | None,
    logsumexp: Tensor,
    need: tuple[bool, ...],
) -> list[Tensor | None]:
    heads, own_k, own_v = q.shape[1], k.shape[1], v.shape[1]
    k, v = _grouped(k, heads), _grouped(v, heads)
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
        grad_k = _ungrouped(grad_k, own_k)
    if grad_v is not None:
        grad_v = _ungrouped(grad_v, own_v)
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


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`torch.nn.functional.scaled_dot_product_attention` with a hand-written backward.

    Args:
        query: `[*, L, d]`; leading axes, if any, broadcast with those of the others.
        key: `[*, S, d]`.
        value: `[*, S, e]`.
        attn_mask: broadcast to `[*, L, S]`; True where a key is seen, or numbers to add to the scores.
        dropout_p: the probability of a zero among the weights (whether in training or not, as torch has it).
        is_causal: query i sees the keys up to i.
        scale: c, 1/√d if left out.
        enable_gqa: the third last axis of `key` and `value`, the heads, may be a divisor of `query`'s.

    Returns:
        `[*, L, e]`; zeros where a query sees no key.

    Raises:
        RuntimeError: shapes, dtypes or a probability that do not fit, in torch's words.
    """
    _check(query, key, value, attn_mask, dropout_p)
    query, key, value = _aligned(query, key, value, enable_gqa)
    if attn_mask is not None:
        _check_mask(attn_mask, (*query.shape[:-1], key.shape[-2]))
    state = None
    if dropout_p > 0 and query.device.type == "cpu" and not (torch.compiler.is_compiling() or transformed()):
        state = torch.default_generator.clone_state()
    if scale is None:
        scale = 1 / math.sqrt(query.shape[-1]) if query.shape[-1] else 1.0
    return AttentionFunction.call(query, key, value, attn_mask, dropout_p, is_causal, scale, state)[0]


def _check(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, dropout_p: float) -> None:
    given = query, key, value
    if any(each.is_nested for each in given):
        raise NotImplementedError(
            "bpkit: attention over nested tensors has no hand-written backward; pad them, or leave the "
            "module out: bpkit.convert(model, exclude=...)"
        )
    if any(each.dim() < 2 for each in given):
        raise RuntimeError(
            "Expected query, key, and value to all be  at least 2 dimensional, but got query.dim: "
            f"{query.dim()} key.dim: {key.dim()} and value.dim: {value.dim()} instead."
        )
    if not torch.is_autocast_enabled(query.device.type):
        names = [_scalar_type(each.dtype) for each in given]
        if len(set(names)) > 1:
            raise RuntimeError(
                "Expected query, key, and value to have the same dtype, but got query.dtype: "
                f"{names[0]} key.dtype: {names[1]} and value.dtype: {names[2]} instead."
            )
        if attn_mask is not None and attn_mask.dtype not in (torch.bool, query.dtype):
            raise RuntimeError(
                "Expected attn_mask dtype to be bool or float or to match query dtype, but got "
                f"attn_mask.dtype: {_scalar_type(attn_mask.dtype)} and  query.dtype: {names[0]} instead."
            )
    if not query.is_floating_point():
        raise RuntimeError(f"expected a floating-point query, not {query.dtype}")
    if key.shape[-1] != query.shape[-1] or key.shape[-2] != value.shape[-2]:
        raise RuntimeError(
            f"Expected size for first two dimensions of batch2 tensor to match: query {list(query.shape)}, "
            f"key {list(key.shape)}, value {list(value.shape)}"
        )
    if not 0 <= dropout_p <= 1:
        raise RuntimeError(f"dropout probability has to be between 0 and 1, but got {dropout_p}")


def _scalar_type(dtype: torch.dtype) -> str:
    """The name that torch's errors have for a dtype."""
    name = str(dtype).removeprefix("torch.")
    return {"float32": "float", "float64": "double", "float16": "c10::Half", "bfloat16": "c10::BFloat16"}.get(
        name, name.removesuffix("64").removesuffix("32")
    )


def _aligned(query: Tensor, key: Tensor, value: Tensor, grouped: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The three as views with the same leading axes; heads of grouped keys and values stay as they are."""
    given = query, key, value
    own = 2
    if grouped and len({each.shape[-3:-2] for each in given}) > 1:
        own = 3
        if any(each.dim() < 3 for each in given):
            raise IndexError(
                "Dimension out of range: enable_gqa needs heads, the third last axis, of all three"
            )
        heads = query.shape[-3]
        if any(each.shape[-3] == 0 or heads % each.shape[-3] for each in (key, value)):
            raise RuntimeError(
                "Number of heads in key and value must divide the number of heads in query, but got "
                f"{key.shape[-3]}, {value.shape[-3]} and {heads}"
            )
    leads = [each.shape[:-own] for each in given]
    if len(set(leads)) > 1:
        for lead in leads[1:]:
            _require_broadcast(leads[0], lead)
        common = torch.broadcast_shapes(*leads)
        query, key, value = (each.expand(*common, *each.shape[-own:]) for each in given)
    return query, key, value


def _require_broadcast(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    rank = max(len(first), len(second))
    for back in range(1, min(len(first), len(second)) + 1):
        a, b = first[-back], second[-back]
        if a != b and 1 not in (a, b):
            raise RuntimeError(
                f"The size of tensor a ({a}) must match the size of tensor b ({b}) at non-singleton "
                f"dimension {rank - back}"
            )


def _check_mask(mask: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse a mask that does not broadcast to the scores' `shape`."""
    _require_broadcast(mask.shape, shape)
    if mask.dim() > len(shape) or any(
        own != 1 and size == 1 for own, size in zip(mask.shape[::-1], shape[::-1], strict=False)
    ):
        raise RuntimeError(
            f"output with shape {list(shape)} doesn't match the broadcast shape "
            f"{list(torch.broadcast_shapes(tuple(mask.shape), shape))}"
        )
