"""MultiheadAttention: h attentions side by side, each over its own linear maps of queries, keys and values.

    [q | k | v] = x_q W_qᵀ + b_q | x_k W_kᵀ + b_k | x_v W_vᵀ + b_v      each [*, E]: h heads of E / h features
    o = attention(q, k, v, m) of every head                              y = [o_1 … o_h] W_oᵀ + b_o

The maps are `linear`, the attention is `scaled_dot_product_attention`, and what lies between them are views:
heads are a view of the features. Where the weights p are wanted too they exist anyhow, so then they are kept:

    s = c q kᵀ + m    p[i,j] = exp(s[i,j]) / Σₗ exp(s[i,l])    w = z p   o = w v   z: 0 or 1 / (1 - r)

With δ = ∂L/∂o, and ω = ∂L/∂w by the weights' own users:

    ∂L/∂v = wᵀ δ       π = z (δ vᵀ + ω)       σ[i,j] = p[i,j] (π[i,j] - Σₗ p[i,l] π[i,l]),  ∂L/∂m as well
    ∂L/∂q = c σ k      ∂L/∂k = c σᵀ q

Saved: the inputs, [q | k | v] and o; with the weights p and a byte a pair for z, without them λ (see
attention.py).
Source: Vaswani et al., "Attention is all you need", 2017, §3.2.2.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import linear as torch_linear

from bpkit import ops
from bpkit.core.function import Function
from bpkit.core.module import Handwritten, adopt
from bpkit.core.precision import widen
from bpkit.core.spec import LayerSpec, Sample, nbytes, randn
from bpkit.layers.attention import scaled_dot_product_attention
from bpkit.layers.linear import Linear, linear
from bpkit.layers.recurrent import transformed


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


def multi_head_attention_forward(  # noqa: D417 - torch's 25 arguments are torch's to describe
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
    *,
    batch_first: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """`torch.nn.functional.multi_head_attention_forward` with hand-written backwards.

    Args:
        query: `[L, n, E]`, or `[L, E]` unbatched; key and value `[S, n, *]`. For the other arguments see
            torch.
        batch_first: bpkit's own: the batch is the first axis of what is given and of the output.

    Returns:
        The output, laid out as `query`, and the weights `[n, L, S]` (of each head `[n, h, L, S]` without
        `average_attn_weights`), or None without `need_weights`.

    Raises:
        AssertionError, RuntimeError: what does not fit, in torch's words.
    """
    batched = F._mha_shape_check(query, key, value, key_padding_mask, attn_mask, num_heads)  # type: ignore[attr-defined]
    axis = 0 if batch_first and batched else 1
    if not batched:
        alone = query, key, value
        query = query.unsqueeze(axis)
        key = query if alone[1] is alone[0] else key.unsqueeze(axis)
        value = key if alone[2] is alone[1] else value.unsqueeze(axis)
        key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
    batch, length, source = query.shape[axis], query.shape[1 - axis], key.shape[1 - axis]
    padding, mask, is_causal = _masks(query, key_padding_mask, attn_mask, is_causal, need_weights)
    _check_sizes(query, key, value, embed_dim_to_check, num_heads, use_separate_proj_weight)
    weights = (q_proj_weight, k_proj_weight, v_proj_weight)
    if use_separate_proj_weight:
        heads = _projected_apart((query, key, value), weights, in_proj_bias, num_heads)
    else:
        heads = _projected((query, key, value), in_proj_weight, in_proj_bias, num_heads)
    order = (0, 2, 1, 3) if axis == 0 else (1, 2, 0, 3)
    q, k, v = (each.permute(order) for each in heads)  #                                  [n, h, L | S, d]

    if mask is not None:
        mask = _four(mask, batch, num_heads, length, source)
    k, v, added = _extended(k, v, (bias_k, bias_v), (static_k, static_v), add_zero_attn)
    mask, padding = _padded(mask, added), _padded(padding, added)
    if padding is not None:
        for place, size in enumerate((batch, k.shape[2])):
            own = padding.shape[place]
            assert own == size, f"Expected key_padded_mask.shape[{place}] to be {size}, but got {own}"
        padding = padding[:, None, None]
        mask = padding if mask is None else ops.add(mask, padding)

    dropout_p = dropout_p if training else 0.0
    attention: Tensor | None = None
    if need_weights:
        wide = torch.float32 if q.is_cuda and torch.is_autocast_enabled("cuda") else None
        output, attention, _, _ = WeightedAttentionFunction.call(
            q, k, v, mask, dropout_p, average_attn_weights, wide
        )
        attention = attention if batched else attention.squeeze(0)
    else:
        output = scaled_dot_product_attention(q, k, v, mask, dropout_p, is_causal)
    # Laid out as torch's, sequence first: a dropout after this draws its mask in the order of memory.
    output = _joined(output.permute(2, 0, 1, 3))
    output = linear(output if batched else output.squeeze(1), out_proj_weight, out_proj_bias)
    return output.transpose(0, 1) if axis == 0 else output, attention


def _joined(heads: Tensor) -> Tensor:
    """`[L, n, h, d]` as `[L, n, h d]`, a view unless heads lie apart."""
    if heads.stride(2) != heads.shape[3] * heads.stride(3):
        heads = ops.contiguous(heads)
    return heads.flatten(2)


def _masks(
    query: Tensor, padding: Tensor | None, mask: Tensor | None, is_causal: bool, need_weights: bool
) -> tuple[Tensor | None, Tensor | None, bool]:
    """Both masks as numbers to add, and whether attention is to hide the keys to come by itself."""
    padding = F._canonical_mask(
        padding,
        "key_padding_mask",
        F._none_or_dtype(mask),
        "attn_mask",
        query.dtype,
    )
    if is_causal and mask is None:
        raise RuntimeError(
            "Need attn_mask if specifying the is_causal hint. You may use the Transformer module method "
            "`generate_square_subsequent_mask` to create this mask."
        )
    if is_causal and padding is None and not need_weights:
        return None, None, True
    mask = F._canonical_mask(mask, "attn_mask", None, "", query.dtype, False)
    return padding, mask, False


def _check_sizes(
    query: Tensor, key: Tensor, value: Tensor, embed_dim: int, num_heads: int, separate: bool
) -> None:
    width = query.shape[-1]
    assert width == embed_dim, f"was expecting embedding dimension of {embed_dim}, but got {width}"
    assert width % num_heads == 0, f"embed_dim {width} not divisible by num_heads {num_heads}"
    if separate:
        assert key.shape[:2] == value.shape[:2], (
            f"key's sequence and batch dims {key.shape[:2]} do not match value's {value.shape[:2]}"
        )
    else:
        assert key.shape == value.shape, f"key shape {key.shape} does not match value shape {value.shape}"


def _projected(
    inputs: tuple[Tensor, Tensor, Tensor], weight: Tensor | None, bias: Tensor | None, heads: int
) -> tuple[Tensor, ...]:
    """Q, k and v `[*, h, d]`, views of one product for as many of the inputs as are the same tensor."""
    assert weight is not None, "use_separate_proj_weight is False but in_proj_weight is None"
    query, key, value = inputs
    width = query.shape[-1]

    def maps(input: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
        return linear(input, weight, bias).unflatten(-1, (-1, heads, width // heads)).unbind(-3)

    if key is value and query is key:
        return maps(query, weight, bias)
    parts = [width, 2 * width] if key is value else [width] * 3
    biases = [None] * 3 if bias is None else bias.split(parts)
    given = zip(inputs, weight.split(parts), biases, strict=False)
    return tuple(each for input, w, b in given for each in maps(input, w, b))


def _projected_apart(
    inputs: tuple[Tensor, Tensor, Tensor],
    weights: tuple[Tensor | None, ...],
    bias: Tensor | None,
    heads: int,
) -> tuple[Tensor, ...]:
    width = inputs[0].shape[-1]
    biases = (None,) * 3 if bias is None else bias.chunk(3)
    found = []
    for name, input, weight, own in zip(("query", "key", "value"), inputs, weights, biases, strict=True):
        assert weight is not None, f"use_separate_proj_weight is True but {name[0]}_proj_weight is None"
        expected = (width, input.shape[-1])
        assert weight.shape == expected, (
            f"expecting {name} weights shape of {expected}, but got {weight.shape}"
        )
        found.append(linear(input, weight, own).unflatten(-1, (heads, width // heads)))
    return tuple(found)


def _four(mask: Tensor, batch: int, heads: int, length: int, source: int) -> Tensor:
    """`[L, S]` or `[n h, L, S]` as `[1, 1, L, S]` or `[n, h, L, S]`."""
    expected = (length, source) if mask.dim() == 2 else (batch * heads, length, source)
    if tuple(mask.shape) != expected:
        raise RuntimeError(
            f"The shape of the {mask.dim()}D attn_mask is {mask.shape}, but should be {expected}."
        )
    return mask[None, None] if mask.dim() == 2 else mask.unflatten(0, (batch, heads))


def _padded(mask: Tensor | None, added: int) -> Tensor | None:
    """The mask with as many columns of zeros after it."""
    if mask is None or not added:
        return mask
    if mask.requires_grad:
        return ops.cat((mask, mask.new_zeros(*mask.shape[:-1], added)), -1)
    return F.pad(mask, (0, added))


def _extended(
    k: Tensor,
    v: Tensor,
    biases: tuple[Tensor | None, Tensor | None],
    static: tuple[Tensor | None, Tensor | None],
    add_zero: bool,
) -> tuple[Tensor, Tensor, int]:
    """Keys and values (or those given, `[n h, S, d]`), a learned one and a zero appended; and how many."""
    assert biases[1] is not None or biases[0] is None, "bias_k is set but bias_v is None"
    assert biases[0] is not None or biases[1] is None, "bias_v is set but bias_k is None"
    batch, heads, _, width = k.shape
    found = []
    for name, own, bias, given in zip(("key", "value"), (k, v), biases, static, strict=True):
        parts = [own]
        if bias is not None:
            assert given is None, f"bias cannot be added to static {name}."
            row = bias[(None,) * (3 - bias.dim())].unflatten(-1, (heads, width))  #      [1, 1, h, d]
            parts.append(row.permute(1, 2, 0, 3).expand(batch, -1, -1, -1))
        if given is not None:
            for axis, size in ((0, batch * heads), (2, width)):
                assert given.size(axis) == size, (
                    f"expecting static_{name[0]}.size({axis}) of {size}, but got {given.size(axis)}"
                )
            parts = [given.unflatten(0, (batch, heads))]
        if add_zero:
            parts.append(own.new_zeros(batch, heads, 1, width))
        found.append(ops.cat(parts, 2) if len(parts) > 1 else parts[0])
    return found[0], found[1], (biases[0] is not None) + add_zero


def recorded(module: nn.Module, *inputs: Tensor) -> bool:
    """Whether autograd is to know of a call; where not, torch's own forward runs, with its fast path."""
    return torch.is_grad_enabled() and (
        any(each.requires_grad for each in inputs) or any(each.requires_grad for each in module.parameters())
    )


def require_dense(module: nn.Module, *inputs: Tensor) -> None:
    """Refuse nested tensors, as torch does outside of its fast path."""
    assert not any(each.is_nested for each in inputs), (
        f"{type(module).__name__} takes a NestedTensor only where no gradient is recorded; pad it, or leave "
        "the module out: bpkit.convert(model, exclude=...)"
    )


class NonDynamicallyQuantizableLinear(Linear, torch_linear.NonDynamicallyQuantizableLinear):
    """`torch.nn.modules.linear.NonDynamicallyQuantizableLinear`, the output map of MultiheadAttention."""


class MultiheadAttention(Handwritten, nn.MultiheadAttention):
    """`torch.nn.MultiheadAttention` with hand-written backwards."""

    @functools.wraps(nn.MultiheadAttention.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        adopt(self, CHILDREN)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        if not recorded(self, query, key, value):
            return super().forward(
                query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
            )
        require_dense(self, query, key, value)
        return multi_head_attention_forward(
            query,
            key,
            value,
            self.embed_dim,
            self.num_heads,
            self.in_proj_weight,
            self.in_proj_bias,
            self.bias_k,
            self.bias_v,
            self.add_zero_attn,
            self.dropout,
            self.out_proj.weight,
            self.out_proj.bias,
            training=self.training,
            key_padding_mask=key_padding_mask,
            need_weights=need_weights,
            attn_mask=attn_mask,
            use_separate_proj_weight=not self._qkv_same_embed_dim,
            q_proj_weight=self.q_proj_weight,
            k_proj_weight=self.k_proj_weight,
            v_proj_weight=self.v_proj_weight,
            average_attn_weights=average_attn_weights,
            is_causal=is_causal,
            batch_first=self.batch_first,
        )


CHILDREN: dict[type[nn.Module], type[nn.Module]] = {
    torch_linear.NonDynamicallyQuantizableLinear: NonDynamicallyQuantizableLinear
}


def _samples() -> Iterable[Sample]:
    x, y, z = (randn(3, 2, 4, seed=seed) for seed in range(3))
    yield Sample(args=(4, 2), inputs=(x, x, x))
    yield Sample(args=(4, 2), kwargs={"batch_first": True}, inputs=(x, y, z), label="batch_first")
    causal = torch.ones(3, 3, dtype=torch.bool).triu(1)
    padding = torch.tensor([[False, False, True], [False, False, False]])
    yield Sample(args=(4, 2), inputs=(x, y, y, None, False, causal, True, True), label="causal, no weights")
    yield Sample(args=(4, 2), inputs=(x, y, y, padding, False), label="padding, no weights")
    yield Sample(
        args=(4, 2),
        kwargs={"add_bias_kv": True, "add_zero_attn": True, "bias": False},
        inputs=(x, y, z, padding, True, causal, False),
        label="both masks, bias_k, zero key",
    )
    yield Sample(
        args=(4, 2),
        kwargs={"kdim": 3, "vdim": 5},
        inputs=(x[:, 0], randn(2, 3), randn(2, 5)),
        label="unbatched",
    )
    yield Sample(args=(4, 2, 0.4), inputs=(x, x, x), label="dropout")


def attention_bytes(module: nn.MultiheadAttention, query: Tensor, key: Tensor, weights: bool) -> int:
    """The most that attention keeps, its inputs apart: q, k, v, o; p and z, or λ; and the mask."""
    if query.dim() == 2:
        batch, length, source = 1, query.shape[0], key.shape[0]
    else:
        axis = 0 if module.batch_first else 1
        batch, length, source = query.shape[axis], query.shape[1 - axis], key.shape[1 - axis]
    size = query.element_size()
    added = (module.bias_k is not None) + module.add_zero_attn
    copies = 2 * (source + added) * bool(added)  # k and v with what was appended
    rows = batch * module.embed_dim * (2 * length + 2 * source + copies) * size
    pairs = batch * length * (source + added)
    dropping = module.dropout > 0 and module.training
    kept = module.num_heads * pairs * (size + dropping) if weights else 0
    return rows + kept + pairs * size + batch * module.num_heads * length * max(4, size)


def _saved_bytes(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> int:
    assert isinstance(module, nn.MultiheadAttention)
    return nbytes(*inputs[:3]) + attention_bytes(module, inputs[0], inputs[1], output[1] is not None)


def _linear_samples() -> Iterable[Sample]:
    yield Sample(args=(3, 4), inputs=(randn(5, 3),))


SPECS = (
    LayerSpec(
        name="MultiheadAttention",
        module=MultiheadAttention,
        reference=nn.MultiheadAttention,
        samples=_samples,
        saves="inputs, q, k, v and their mean; with weights a number a pair, else a number a query and head",
        saved_bytes=_saved_bytes,
        random=True,
        aliases=("multi_head_attention_forward",),
        summary="attention of several heads",
    ),
    LayerSpec(
        name="NonDynamicallyQuantizableLinear",
        module=NonDynamicallyQuantizableLinear,
        reference=torch_linear.NonDynamicallyQuantizableLinear,
        samples=_linear_samples,
        saves="input",
        saved_bytes=lambda module, inputs, output: nbytes(inputs[0]),
        summary="the output map of MultiheadAttention",
    ),
)
