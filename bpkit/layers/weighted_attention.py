"""Attention that hands out its weights as well: there they exist anyhow, so here they are kept.

    s = c q kᵀ + m    p[i,j] = exp(s[i,j]) / Σₗ exp(s[i,l])    w = z p   o = w v   z: 0 or 1 / (1 - r)

With δ = ∂L/∂o, and ω = ∂L/∂w by the weights' own users:

    ∂L/∂v = wᵀ δ       π = z (δ vᵀ + ω)       σ[i,j] = p[i,j] (π[i,j] - Σₗ p[i,l] π[i,l]),  ∂L/∂m as well
    ∂L/∂q = c σ k      ∂L/∂k = c σᵀ q

Saved: q, k, v, m, p, and a byte a pair for z. Without weights see `attention.py`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bpkit.core.function import Function
from bpkit.core.precision import widen
from bpkit.core.transforms import transformed


class WeightedAttentionFunction(Function):
    """`(q [n, h, L, d], k [n, h, S, d], v [n, h, S, d], m, r, mean?, dtype) -> (o [n, h, L, d], w, p, z)`.

    w is `[n, h, L, S]`, or its mean over the heads.
    """

    autocast = {"cpu": "lower", "cuda": "lower"}

    @staticmethod
    def forward(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        dropout_p: float,
        average: bool,
        dtype: torch.dtype | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        p = _softmax(query, key, mask, dtype)
        if transformed():  # mapped over as the output is: else the gradient of w would count once a sample
            p = p + value.new_zeros(())
        weights = p
        keep = query.new_zeros(0)
        if dropout_p:
            weights, keep = torch.native_dropout(p, dropout_p, True)
        output = weights.to(value.dtype) @ value
        if average:
            return output, weights.mean(1), p, keep
        return output, weights, p if dropout_p else query.new_zeros(0), keep

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        query, key, value, mask, ctx.dropout_p, ctx.average, ctx.dtype = inputs
        _, weights, p, keep = output
        ctx.mark_non_differentiable(p, keep)
        ctx.set_materialize_grads(False)
        p = p if ctx.dropout_p or ctx.average else weights
        ctx.mask = None if mask is None else (mask.shape, mask.dtype)
        ctx.save_for_backward(query, key, value, mask, p, keep)

    @staticmethod
    def backward(
        ctx: Any, grad_output: Tensor | None, grad_weights: Tensor | None, *_: None
    ) -> tuple[Tensor | None, ...]:
        if grad_output is None and grad_weights is None:
            return (None,) * 7
        query, key, value, mask, p, keep = ctx.saved_tensors
        if torch.is_grad_enabled():
            p = _softmax(query, key, mask, ctx.dtype)
        need = ctx.needs_input_grad
        p, scale = widen(p), _scale(query)
        factor = 0.0 if ctx.dropout_p == 1 else 1 / (1 - ctx.dropout_p)
        grad_value = pi = None
        if grad_output is not None:
            delta = widen(grad_output)
            if need[2]:
                weights = p * keep * factor if ctx.dropout_p else p
                grad_value = (weights.mT @ delta).to(value.dtype)
            pi = delta @ widen(value).mT
        if grad_weights is not None:
            omega = widen(grad_weights)
            omega = (omega / p.shape[1]).unsqueeze(1).expand(p.shape) if ctx.average else omega
            pi = omega if pi is None else pi + omega
        assert pi is not None
        if ctx.dropout_p:
            pi = pi * keep * factor
        sigma = p * (pi - (p * pi).sum(-1, keepdim=True))
        grad_query = grad_key = grad_mask = None
        if need[0]:
            grad_query = ((sigma @ widen(key)) * scale).to(query.dtype)
        if need[1]:
            grad_key = ((sigma.mT @ widen(query)) * scale).to(key.dtype)
        if need[3]:
            shape, dtype = ctx.mask
            grad_mask = sigma.sum_to_size(shape).to(dtype)
        return grad_query, grad_key, grad_value, grad_mask, None, None, None


def _scale(query: Tensor) -> float:
    return math.sqrt(1.0 / query.shape[-1])


def _softmax(query: Tensor, key: Tensor, mask: Tensor | None, dtype: torch.dtype | None) -> Tensor:
    """P; NaN where a query sees no key, as torch has it here."""
    s = (query * _scale(query)) @ key.mT
    return (s if mask is None else s + mask).softmax(-1, dtype)
