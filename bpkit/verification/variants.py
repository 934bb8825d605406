"""The same case on other values, and the same values in other layouts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bpkit.verification.case import Case

# Where the largest element of an input is scaled to: both tails, and close to zero.
REACHES = (6.0, -6.0, 1e-3)


def scaled(case: Case, reaches: Sequence[float] = REACHES) -> Iterator[tuple[str, Case]]:
    """The case with its inputs' largest element scaled to each of `reaches`, and how a report says that."""
    for far in reaches:
        values = {}
        for position in case.differentiable:
            value = case.values[position].detach()
            largest = float(value.abs().max()) if value.numel() else 0.0
            if largest > 0:
                values[position] = value * (far / largest)
        if values:
            yield f"with inputs scaled to reach {far:+g}, ", case.having(values)


# Nothing, one, few; a vector register (or half a warp) and a block, full and by one more; several blocks.
SIZES = (0, 1, 2, 3, 16, 17, 128, 129, 1025)
# Elements in all inputs: what the checker makes up has to stay cheap.
LARGEST = 1 << 17


@dataclass(frozen=True)
class Resized:
    """A case of another size.

    Attributes:
        where: how a report says it.
        case: on values of that size.
        empty_batch: only first axes of inputs are empty, which everybody meets sooner or later.
    """

    where: str
    case: Case
    empty_batch: bool = False


def resized(case: Case, sizes: Sequence[int] = SIZES, most: int = LARGEST) -> Iterator[Resized]:
    """The case with its axes of one length changed together; then one by one; then with an axis more or less.

    `most` limits the elements in all inputs.

    Whether a size makes sense only the reference can tell. New values lie between two that were given,
    so they stay in whatever range those have, and no two are tied.
    """
    shapes = {i: tuple(v.shape) for i, v in enumerate(case.values) if isinstance(v, Tensor)}
    data = [i for i in shapes if i not in case.parameters | case.buffers]
    lengths = dict.fromkeys(length for shape in shapes.values() for length in shape)
    axes = [(i, axis) for i, shape in shapes.items() for axis in range(len(shape))]
    groups = [[(i, axis) for i, axis in axes if shapes[i][axis] == length] for length in lengths]
    alone = [[place] for place in axes if [place] not in groups]
    for size in sizes:
        for group in [*groups, *alone]:
            i, axis = group[0]
            if shapes[i][axis] == size:
                continue
            if size < shapes[i][axis] and not any(i in data for i, _ in group):
                continue  # torch's recurrent kernels read past a parameter smaller than they trust it to be
            new = {i: list(shape) for i, shape in shapes.items()}
            for i, axis in group:
                new[i][axis] = size
            them = f"axis {axis} of {case.names[i]}" if len(group) == 1 else "every axis of that length"
            where = f"with {size} in place of {shapes[i][axis]} in {them}, "
            empty = size == 0 and all(i in data and axis == 0 for i, axis in group)
            yield from _made(case, where, shapes, new, most, empty_batch=empty)
    for change, shape_of in _RANKS.items():
        for chosen in [data, *([i] for i in data if len(data) > 1)]:
            new = {i: shape_of(shape) if i in chosen else list(shape) for i, shape in shapes.items()}
            names = ", ".join(case.names[i] for i in chosen)
            yield from _made(case, f"with {change} {names}, ", shapes, new, most)


_RANKS: dict[str, Callable[[tuple[int, ...]], list[int]]] = {
    "one more leading axis in": lambda shape: [2, *shape],
    "no leading axis in": lambda shape: list(shape[1:]),
    "no axes in": lambda shape: [],
}


def _made(
    case: Case,
    where: str,
    shapes: dict[int, tuple[int, ...]],
    new: dict[int, list[int]],
    most: int,
    *,
    empty_batch: bool = False,
) -> Iterator[Resized]:
    changed = {i: shape for i, shape in new.items() if tuple(shape) != shapes[i]}
    if changed and sum(math.prod(shape) for shape in new.values()) <= most:
        values = {i: resampled(case.values[i], shape) for i, shape in changed.items()}
        yield Resized(where, case.having(values), empty_batch)


def resampled(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """A tensor of `shape` whose elements lie between two of `tensor`'s, or are its own if not real."""
    count = math.prod(shape)
    if tensor.numel() == 0 or count == 0:
        return tensor.new_zeros(list(shape))
    generator = torch.Generator().manual_seed(count)
    flat = tensor.detach().reshape(-1)

    first = torch.randint(len(flat), (count,), generator=generator)
    values = flat[first.to(flat.device)]
    if values.dtype.is_floating_point:
        share = torch.rand(count, dtype=torch.float64, generator=generator).to(flat.device, values.dtype)
        # Another element than the first: between an element and itself every value would be a tie.
        other = first + torch.randint(1, max(len(flat), 2), (count,), generator=generator)
        values = values + share * (flat[(other % len(flat)).to(flat.device)] - values)
    return values.reshape(list(shape))


def transposed(tensor: Tensor) -> Tensor:
    """The values of `tensor`, laid out with its axes in reverse order."""
    axes = tuple(reversed(range(tensor.dim())))
    return tensor.permute(axes).contiguous().permute(axes)


def narrowed(tensor: Tensor) -> Tensor:
    """The values of `tensor` as every second element of a larger one, with NaN in between."""
    filler = float("nan") if tensor.is_floating_point() else 0
    buffer = tensor.new_full([2 * size + 1 for size in tensor.shape] or [3], filler)
    view = buffer[tuple(slice(1, None, 2) for _ in tensor.shape)] if tensor.dim() else buffer[1]
    view.copy_(tensor)
    return view


def channels_last(tensor: Tensor) -> Tensor:
    """Four axes with the second one innermost; any other tensor as it is."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def expanded(tensor: Tensor) -> Tensor:
    """The first slice of `tensor` in place of all of them, at stride 0."""
    return tensor[:1].expand_as(tensor) if tensor.dim() and tensor.numel() else tensor


def spread(tensor: Tensor) -> Tensor:
    """The first element of `tensor` in place of all of them, at stride 0: what `sum` hands back."""
    return tensor.reshape(-1)[:1].squeeze().expand_as(tensor) if tensor.numel() else tensor


def overlapping(tensor: Tensor) -> Tensor:
    """A window that slides by one element along every axis, so that most memory is read many times."""
    if tensor.numel() == 0 or tensor.dim() == 0:
        return tensor
    needed = sum(tensor.shape) - tensor.dim() + 1
    return tensor.reshape(-1)[:needed].clone().as_strided(tensor.shape, (1,) * tensor.dim())


def part_of_cat(tensor: Tensor) -> Tensor:
    """The middle third of a concatenation along the last axis: what `chunk` and fused projections give."""
    if tensor.dim() == 0:
        return tensor
    width = tensor.shape[-1]
    return torch.cat((tensor, tensor, tensor), -1).narrow(-1, width, width)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": transposed,
    "narrowed": narrowed,
    "concatenated": part_of_cat,
    "channels-last": channels_last,
    "expanded": expanded,
    "spread": spread,
    "overlapping": overlapping,
}
