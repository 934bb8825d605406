"""The same case on other values, and the same values in other layouts."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bpkit.verification.case import Case

# Where the largest element of an input is scaled to: both tails, and close to zero.
REACHES = (6.0, -6.0, 1e-3)


def scaled(case: Case) -> Iterator[tuple[str, Case]]:
    """The case with its inputs scaled to each of `REACHES`, and how a report says that."""
    for far in REACHES:
        values = {}
        for position in case.differentiable:
            value = case.values[position].detach()
            largest = float(value.abs().max()) if value.numel() else 0.0
            if largest > 0:
                values[position] = value * (far / largest)
        if values:
            yield f"with inputs scaled to reach {far:+g}, ", case.having(values)


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


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": transposed,
    "narrowed": narrowed,
    "channels-last": channels_last,
    "expanded": expanded,
    "spread": spread,
}
