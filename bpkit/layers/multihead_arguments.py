"""What multi-head attention is given: torch's checks and masks, and heads of queries, keys and values."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bpkit import ops
from bpkit.layers.linear import linear


def recorded(module: nn.Module, *inputs: Tensor | None) -> bool:
    """Whether autograd is to know of a call; where not, torch's own forward runs, with its fast path.

    Of all that it is given: a mask may be learned where nothing else is.
    """
    return torch.is_grad_enabled() and any(
        each is not None and each.requires_grad for each in (*inputs, *module.parameters())
    )


def require_dense(module: nn.Module, *inputs: Tensor) -> None:
    """Refuse nested tensors, as torch does outside of its fast path."""
    assert not any(each.is_nested for each in inputs), (
        f"{type(module).__name__} takes a NestedTensor only where no gradient is recorded; pad it, or leave "
        "the module out: bpkit.convert(model, exclude=...)"
    )


def masks(
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


def check_sizes(
    query: Tensor, key: Tensor, value: Tensor, embed_dim: int, num_heads: int, separate: bool
) -> None:
    """Refuse sizes that do not fit, in torch's words."""
    width = query.shape[-1]
    assert width == embed_dim, f"was expecting embedding dimension of {embed_dim}, but got {width}"
    assert width % num_heads == 0, f"embed_dim {width} not divisible by num_heads {num_heads}"
    if separate:
        assert key.shape[:2] == value.shape[:2], (
            f"key's sequence and batch dims {key.shape[:2]} do not match value's {value.shape[:2]}"
        )
    else:
        assert key.shape == value.shape, f"key shape {key.shape} does not match value shape {value.shape}"


def projected(
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


def projected_apart(
    inputs: tuple[Tensor, Tensor, Tensor],
    weights: tuple[Tensor | None, ...],
    bias: Tensor | None,
    heads: int,
) -> tuple[Tensor, ...]:
    """The same by a weight each, for keys and values of other widths."""
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


def four(mask: Tensor, batch: int, heads: int, length: int, source: int) -> Tensor:
    """`[L, S]` or `[n h, L, S]` as `[1, 1, L, S]` or `[n, h, L, S]`."""
    expected = (length, source) if mask.dim() == 2 else (batch * heads, length, source)
    if tuple(mask.shape) != expected:
        raise RuntimeError(
            f"The shape of the {mask.dim()}D attn_mask is {mask.shape}, but should be {expected}."
        )
    return mask[None, None] if mask.dim() == 2 else mask.unflatten(0, (batch, heads))


def padded(mask: Tensor | None, added: int) -> Tensor | None:
    """The mask with as many columns of zeros after it."""
    if mask is None or not added:
        return mask
    if mask.requires_grad:
        return ops.cat((mask, mask.new_zeros(*mask.shape[:-1], added)), -1)
    return F.pad(mask, (0, added))


def extended(
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
