"""Operators that move elements: each output element is one of the input's, or a constant.

    y[k] = x[s(k)]        ∂L/∂x[j] = Σₖ [s(k) = j] g[k]

Where s repeats no element (cat, flip, roll, …) the sum has one term, and the gradient is the move back;
where it may (gather, index, repeat) the terms are added up. What torch makes a view of (transpose,
split, expand, …) stays torch's view, and is not here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bpkit.core.function import Function
from bpkit.ops.op import op


class CatFunction(Function):
    """`(axis, x_0, x_1, …)`: each gets its own part of g back."""

    autocast = {"cpu": "promote", "cuda": "promote"}

    @staticmethod
    def forward(dim: int, *tensors: Tensor) -> Tensor:
        return torch.cat(tensors, dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.dim, *tensors = inputs
        ctx.likes = [(each.shape, each.dtype) for each in tensors]

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        gradients: list[Tensor | None] = [None]
        start = 0
        for (shape, dtype), needed in zip(ctx.likes, ctx.needs_input_grad[1:], strict=True):
            if shape == (0,) and grad_output.dim() > 1:  # torch lets an empty vector pass anywhere
                gradients.append(grad_output.new_zeros(0, dtype=dtype) if needed else None)
                continue
            size = shape[ctx.dim]
            gradients.append(grad_output.narrow(ctx.dim, start, size).to(dtype) if needed else None)
            start += size
        return tuple(gradients)


def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """`torch.cat`."""
    if not _well_formed(tensors):
        return torch.cat(tensors, dim)  # type: ignore[arg-type]  # raises, in torch's words
    return CatFunction.call(dim, *tensors)


def stack(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """`torch.stack`: `cat` of views with a new axis."""
    if not _well_formed(tensors) or any(each.shape != tensors[0].shape for each in tensors):
        return torch.stack(tensors, dim)  # type: ignore[arg-type]  # raises, in torch's words
    return CatFunction.call(dim, *(each.unsqueeze(dim) for each in tensors))


def _well_formed(tensors: Any) -> bool:
    return len(tensors) > 0 and all(isinstance(each, Tensor) for each in tensors)


def hstack(tensors: Sequence[Tensor]) -> Tensor:
    """`torch.hstack`."""
    flat = [torch.atleast_1d(each) for each in tensors]
    return cat(flat, 0 if flat and flat[0].dim() == 1 else 1)


def vstack(tensors: Sequence[Tensor]) -> Tensor:
    """`torch.vstack`."""
    return cat([torch.atleast_2d(each) for each in tensors], 0)


# Copies.
clone = op(
    lambda input, memory_format=torch.preserve_format: torch.clone(input, memory_format=memory_format),
    name="clone",
    input=lambda g: g,
)


def _moved(input: Tensor, args: tuple[Any, ...], kwargs: tuple[tuple[str, Any], ...]) -> Tensor:
    moved = input.to(*args, **dict(kwargs))
    return input.clone() if moved is input else moved  # a Function may not return its input


_cast = op(
    _moved,
    name="to",
    input=lambda g: g,
)


def to(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`Tensor.to`: another dtype or device; the tensor itself where it is so already."""
    return _cast(input, args, tuple(kwargs.items())) if _moves(input, args, kwargs) else input


def _moves(input: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether `input.to(...)` is another tensor: told from the arguments where they tell it."""
    for each in (*args, *kwargs.values()):
        if isinstance(each, torch.dtype):
            if each != input.dtype:
                return True
        elif isinstance(each, Tensor):
            if each.dtype != input.dtype or each.device != input.device:
                return True
        elif isinstance(each, (str, torch.device)):
            if torch.device(each) != input.device:
                return True
        elif each is not None:  # copy, non_blocking, a memory format
            same = input.detach()
            return same.to(*args, **kwargs) is not same
    return False


def contiguous(input: Tensor, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
    """`Tensor.contiguous`: the tensor itself where it is."""
    if input.is_contiguous(memory_format=memory_format):
        return input
    return clone(input, memory_format)


def reshape(input: Tensor, *shape: Any) -> Tensor:
    """`Tensor.reshape`: a view where torch makes one, else a view of a copy."""
    size = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
    if input.is_contiguous() or torch.compiler.is_compiling():  # Dynamo looks through no handler of an error
        return contiguous(input).view(size)
    try:
        return input.view(size)
    except (RuntimeError, ValueError):  # a fake tensor raises the latter
        return contiguous(input).view(size)


def flatten(input: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """`torch.flatten`, likewise."""
    if not input.dim():
        return input.reshape(1)
    start, end = start_dim % input.dim(), end_dim % input.dim()
    if start > end:
        return torch.flatten(input, start_dim, end_dim)  # raises, in torch's words
    shape = input.shape
    return reshape(input, (*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :]))


# Choices of elements: what is chosen twice gets both gradients.
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


def _folded(g: Tensor, shape: torch.Size, repeats: Sequence[int]) -> Tensor:
    """The sum over the copies: [r, n] of each axis, summed over r."""
    size = (1,) * (len(repeats) - len(shape)) + tuple(shape)
    pairs = [number for pair in zip(repeats, size, strict=True) for number in pair]
    return g.reshape(pairs).sum(tuple(range(0, len(pairs), 2))).reshape(shape)


_repeat = op(
    lambda input, repeats: input.repeat(repeats),
    name="repeat",
    input=lambda g, repeats, shape: _folded(g, shape, repeats),
)


def repeat(input: Tensor, *repeats: Any) -> Tensor:
    """`Tensor.repeat`."""
    return _repeat(input, tuple(repeats[0]) if isinstance(repeats[0], Sequence) else repeats)


def tile(input: Tensor, dims: Any, *more: int) -> Tensor:
    """`torch.tile` and `Tensor.tile`."""
    dims = tuple(dims) if isinstance(dims, Sequence) else (dims, *more)
    return repeat(input, (1,) * (input.dim() - len(dims)) + tuple(dims))


def repeat_interleave(
    input: Tensor, repeats: Any, dim: int | None = None, *, output_size: int | None = None
) -> Tensor:
    """`torch.repeat_interleave`: an `index_select` of repeating positions."""
    if dim is None:
        input, dim = flatten(input), 0
    positions = torch.arange(input.shape[dim], device=input.device)
    positions = positions.repeat_interleave(repeats, output_size=output_size)
    return index_select(input, dim, positions)


_pack = op(
    lambda input, lengths: torch._VF._pack_padded_sequence(input, lengths, False),
    name="pack_padded_sequence",
    input=lambda g, out1, shape: torch._VF._pad_packed_sequence(g, out1, False, 0.0, shape[0])[0],
)


def pack_padded_sequence(input: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:
    """What `torch.nn.utils.rnn.pack_padded_sequence` runs: the rows of each step that are there."""
    return _pack(input.transpose(0, 1) if batch_first else input, lengths)


_pad_packed = op(
    lambda data, batch_sizes, padding, length: torch._VF._pad_packed_sequence(
        data, batch_sizes, False, padding, length
    ),
    name="pad_packed_sequence",
    data=lambda g, batch_sizes, out1: torch._VF._pack_padded_sequence(g, out1, False)[0],
)


def pad_packed_sequence(
    data: Tensor, batch_sizes: Tensor, batch_first: bool, padding_value: float, total_length: int
) -> tuple[Tensor, Tensor]:
    """What `torch.nn.utils.rnn.pad_packed_sequence` runs: back among the padding."""
    padded, lengths = _pad_packed(data, batch_sizes, padding_value, total_length)
    return (padded.transpose(0, 1) if batch_first else padded), lengths


flip = op(lambda input, dims: torch.flip(input, dims), name="flip", input=lambda g, dims: g.flip(dims))


def _negated(shifts: Any) -> Any:
    return -shifts if isinstance(shifts, int) else tuple(-each for each in shifts)


roll = op(
    lambda input, shifts, dims=(): torch.roll(input, shifts, dims),
    name="roll",
    input=lambda g, shifts, dims: g.roll(_negated(shifts), dims),
)
tril = op(
    lambda input, diagonal=0: torch.tril(input, diagonal),
    name="tril",
    input=lambda g, diagonal: g.tril(diagonal),
)
triu = op(
    lambda input, diagonal=0: torch.triu(input, diagonal),
    name="triu",
    input=lambda g, diagonal: g.triu(diagonal),
)
