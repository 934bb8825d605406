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
from typing import Any

import torch
from torch import Tensor

from bpkit.core.function import Function
from bpkit.core.precision import LOW_PRECISION, widen
from bpkit.core.transforms import may_write, transformed
from bpkit.layers.attention_arguments import aligned, check, check_mask, four, four_mask, like_mask
from bpkit.layers.attention_plain import Scores, backward_plain, forward_plain
from bpkit.layers.attention_tiles import backward_tiles, forward_tiles

# Both kinds of vmap refuse to draw; what is drawn again is no draw.
_VMAPS = torch._C.DispatchKeySet(torch._C._parse_dispatch_key("VmapMode")).add(  # type: ignore[arg-type]
    torch._C.DispatchKey.FuncTorchVmapMode
)


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
        q, k, v = four(query), four(key), four(value)
        m = four_mask(mask, query.shape)
        lead = query.shape[:-2]
        none = q.new_zeros(0, dtype=torch.bool)
        if not may_write():
            output, logsumexp, keep = forward_plain(q, k, v, Scores(scale, causal, m, None, 1.0), dropout_p)
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
            output, logsumexp = forward_tiles(q, k, v, scores)
            keep = none if state is not None or drawn is None else drawn.reshape(*lead, *drawn.shape[2:])
        shape = (*lead, *output.shape[2:])
        # As no view, for who writes to the output in place.
        return torch.ops.aten._unsafe_view(output.reshape(shape), shape), logsumexp.reshape(shape[:-1]), keep

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
        q, k, v, g = (widen(four(each)) for each in (query, key, value, grad_output))
        m = four_mask(mask, query.shape)
        m = widen(m) if m is not None and m.is_floating_point() else m
        if ctx.state is not None:
            drawn = _draw((*q.shape[:3], k.shape[2]), ctx.dropout_p, q.device, ctx.state.clone_state())
        else:
            drawn = four(keep) if ctx.dropout_p else None
        scores = Scores(ctx.scale, ctx.causal, m, drawn, _factor(ctx.dropout_p))
        if may_write():
            delta = None if output is None else (g * four(output)).sum(-1, keepdim=True)
            gradients = backward_tiles(g, q, k, v, scores, delta, logsumexp.reshape(q.shape[:3]), need)
        else:
            gradients = backward_plain(g, q, k, v, scores, need)
        likes = (query, key, value)
        back = [
            None if each is None else each.reshape(like.shape).to(like.dtype)
            for each, like in zip(gradients, likes, strict=False)
        ]
        grad_mask = gradients[3]
        if grad_mask is not None:
            grad_mask = like_mask(grad_mask, mask, query.shape)
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
    check(query, key, value, attn_mask, dropout_p)
    query, key, value = aligned(query, key, value, enable_gqa)
    if attn_mask is not None:
        check_mask(attn_mask, (*query.shape[:-1], key.shape[-2]))
    state = None
    if dropout_p > 0 and query.device.type == "cpu" and not (torch.compiler.is_compiling() or transformed()):
        state = torch.default_generator.clone_state()
    if scale is None:
        scale = 1 / math.sqrt(query.shape[-1]) if query.shape[-1] else 1.0
    return AttentionFunction.call(query, key, value, attn_mask, dropout_p, is_causal, scale, state)[0]
