"""Operators that choose elements, or put them in their places, by an index or a mask.

    y[k] = x[i(k)]                      ∂L/∂x[j] = Σₖ [i(k) = j] g[k]
    y[j] = x[j] + Σₖ [i(k) = j] s[k]    ∂L/∂s[k] = g[i(k)]

What is chosen twice gets both gradients. Slices and numbers alone make a view, which stays torch's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bpkit.core.function import Function
from bpkit.ops.op import op
from bpkit.ops.shaping import flatten

# Choices of elements.
index_select = op(
    lambda input, dim, index: torch.index_select(input, dim, index),
    name="index_select",
    input=lambda g, dim, index, shape: g.new_zeros(shape).index_add(dim, index, g),
)
gather = op(
    lambda input, dim, index: torch.gather(input, dim, index),
    name="gather",
    input=lambda g, dim, index, shape: g.new_zeros(shape).scatter_add(dim, index, g),
)


def repeat_interleave(
    input: Tensor, repeats: Any, dim: int | None = None, *, output_size: int | None = None
) -> Tensor:
    """`torch.repeat_interleave`: an `index_select` of repeating positions."""
    if dim is None:
        input, dim = flatten(input), 0
    positions = torch.arange(input.shape[dim], device=input.device)
    positions = positions.repeat_interleave(repeats, output_size=output_size)
    return index_select(input, dim, positions)


class IndexFunction(Function):
    """`(x, i_0, i_1, …)` is x[i_0, i_1, …], with None for an axis taken whole."""

    @staticmethod
    def forward(input: Tensor, *indices: Tensor | None) -> Tensor:
        return torch.ops.aten.index(input, indices)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.shape = inputs[0].shape
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        indices = ctx.saved_tensors
        gradient = grad_output.new_zeros(ctx.shape)
        gradient = torch.ops.aten.index_put(gradient, indices, grad_output, True)
        return gradient, *(None for _ in indices)


def getitem(input: Tensor, key: Any) -> Tensor:
    """`x[key]`: views for slices and numbers, a copy for tensors of indices or of truth values.

    Raises:
        NotImplementedError: a truth value that is no mask of an axis, a list that is no plain row of numbers.
    """
    keys = [_key(each) for each in _tuple(key)]
    chosen = [isinstance(each, Tensor) and each.dim() > 0 for each in keys]
    if not any(chosen):
        return input[key]
    consumed = [0 if each is None or each is Ellipsis else _axes_of(each) for each in keys]
    basic: list[Any] = []
    indices: list[Tensor | None] = []  # one for each axis of the view, one for all axes of a mask
    for each, pick, axes in zip(keys, chosen, consumed, strict=True):
        if pick:
            basic += [slice(None)] * axes
            indices.append(each.to(input.device))
        else:
            basic.append(each)
            if each is Ellipsis:
                indices += [None] * (input.dim() - sum(consumed))
            elif each is None or isinstance(each, slice):
                indices.append(None)
    return IndexFunction.call(input[tuple(basic)], *indices)


def _tuple(key: Any) -> tuple[Any, ...]:
    return key if isinstance(key, tuple) else (key,)


def _key(key: Any) -> Any:
    """A part of a key, as a tensor where it chooses elements one by one."""
    if key is None or key is Ellipsis or isinstance(key, slice):
        return key
    if isinstance(key, (list, tuple, range)):
        kinds = {type(each) for each in key}
        if kinds not in ({int}, {bool}):  # what torch makes of lists of lists, or of nothing, is its own
            raise NotImplementedError("bpkit.ops.getitem takes lists of plain numbers or truth values alone")
        return torch.tensor(list(key))
    if not isinstance(key, (Tensor, int)) and hasattr(key, "__array__"):  # numpy's
        key = torch.as_tensor(key)
    if isinstance(key, bool) or (
        isinstance(key, Tensor) and key.dim() == 0 and key.dtype in (torch.bool, torch.uint8)
    ):
        raise NotImplementedError("bpkit.ops.getitem takes no single truth value as an index")
    return key


def _axes_of(key: Any) -> int:
    """How many axes a key takes: a mask as many as it has, anything else one."""
    mask = isinstance(key, Tensor) and key.dtype in (torch.bool, torch.uint8)
    return key.dim() if mask else 1


# Places of elements.
scatter = op(
    lambda input, dim, index, src: torch.scatter(input, dim, index, src),
    name="scatter",
    input=lambda g, dim, index: g.scatter(dim, index, 0),
    src=lambda g, dim, index: g.gather(dim, index),
)
scatter_add = op(
    lambda input, dim, index, src: torch.scatter_add(input, dim, index, src),
    name="scatter_add",
    input=lambda g: g,
    src=lambda g, dim, index: g.gather(dim, index),
)
index_add = op(
    lambda input, dim, index, source, alpha=1: torch.index_add(input, dim, index, source, alpha=alpha),
    name="index_add",
    input=lambda g: g,
    source=lambda g, dim, index, alpha: g.index_select(dim, index) * alpha,
)
masked_scatter = op(
    lambda input, mask, source: input.masked_scatter(mask, source),
    name="masked_scatter",
    input=lambda g, mask: g.masked_fill(mask, 0),
    source=lambda g, mask, shape: _packed(g, mask, shape),
)


def _packed(g: Tensor, mask: Tensor, shape: torch.Size) -> Tensor:
    """The gradients of what was placed, in order, and zeros for what was left over."""
    placed = g.masked_select(mask)
    return torch.cat((placed, placed.new_zeros(shape.numel() - placed.numel()))).reshape(shape)


masked_select = op(
    lambda input, mask: torch.masked_select(input, mask),
    name="masked_select",
    input=lambda g, mask, shape: g.new_zeros(torch.broadcast_shapes(shape, mask.shape)).masked_scatter(
        mask, g
    ),
)
