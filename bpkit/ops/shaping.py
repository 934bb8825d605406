"""Operators that move elements: each output element is one of the input's, or a constant.

    y[k] = x[s(k)]        ∂L/∂x[j] = Σₖ [s(k) = j] g[k]

Where s repeats no element (cat, flip, roll, …) the sum has one term, and the gradient is the move back;
where it may (repeat, tile) the terms are added up. What torch makes a view of (transpose, split,
expand, …) stays torch's view, and is not here. Moves by an index or a mask are in `indexing.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bpkit.core.function import Function
from bpkit.core.refusal import refuse
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
        refuse(torch.cat, tensors, dim)
    return CatFunction.call(dim, *tensors)


def stack(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """`torch.stack`: `cat` of views with a new axis."""
    if not _well_formed(tensors) or any(each.shape != tensors[0].shape for each in tensors):
        refuse(torch.stack, tensors, dim)
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
        refuse(torch.flatten, input, start_dim, end_dim)
    shape = input.shape
    return reshape(input, (*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :]))


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
