"""MultiheadAttention: h attentions side by side, each over its own linear maps of queries, keys and values.

    [q | k | v] = x_q W_qᵀ + b_q | x_k W_kᵀ + b_k | x_v W_vᵀ + b_v      each [*, E]: h heads of E / h features
    o = attention(q, k, v, m) of every head                              y = [o_1 … o_h] W_oᵀ + b_o

The maps are `linear`, the attention is `scaled_dot_product_attention`, or `WeightedAttentionFunction` where
the weights are wanted too; both have a page with their derivation. What lies between them are views: heads
are a view of the features.

Saved: the inputs, [q | k | v] and o; with the weights p and a byte a pair for dropout, without them one
number a query.
Source: Vaswani et al., "Attention is all you need", 2017, §3.2.2.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import linear as torch_linear

from bpkit import ops
from bpkit.core.module import Handwritten, adopt
from bpkit.core.spec import LayerSpec, Sample, nbytes, randn
from bpkit.layers.attention import scaled_dot_product_attention
from bpkit.layers.linear import Linear, linear
from bpkit.layers.multihead_arguments import (
    check_sizes,
    extended,
    four,
    masks,
    padded,
    projected,
    projected_apart,
    recorded,
    require_dense,
)
from bpkit.layers.weighted_attention import WeightedAttentionFunction


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
    padding, mask, is_causal = masks(query, key_padding_mask, attn_mask, is_causal, need_weights)
    check_sizes(query, key, value, embed_dim_to_check, num_heads, use_separate_proj_weight)
    weights = (q_proj_weight, k_proj_weight, v_proj_weight)
    if use_separate_proj_weight:
        heads = projected_apart((query, key, value), weights, in_proj_bias, num_heads)
    else:
        heads = projected((query, key, value), in_proj_weight, in_proj_bias, num_heads)
    order = (0, 2, 1, 3) if axis == 0 else (1, 2, 0, 3)
    q, k, v = (each.permute(order) for each in heads)  #                                  [n, h, L | S, d]

    if mask is not None:
        mask = four(mask, batch, num_heads, length, source)
    k, v, added = extended(k, v, (bias_k, bias_v), (static_k, static_v), add_zero_attn)
    mask, padding = padded(mask, added), padded(padding, added)
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
        if not recorded(self, query, key, value, key_padding_mask, attn_mask):
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
