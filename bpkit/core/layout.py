"""Memory formats: a gradient comes back laid out as its input, so that no later kernel has to convert it."""

from __future__ import annotations

from torch import Tensor


def channels_last(tensor: Tensor) -> bool:
    """Whether `tensor` is a batch of images, `[n, c, h, w]`, with its channels innermost in memory."""
    if tensor.dim() != 4:
        return False
    _, channels, _, width = tensor.shape
    _, by_channel, by_row, by_column = tensor.stride()
    return channels > 1 and by_channel == 1 and by_column >= channels and by_row >= by_column * width


def laid_out(tensor: Tensor, innermost: bool) -> Tensor:
    """An image batch with its channels innermost in memory, or outermost; a copy only if it is not so.

    Written with `permute`: `contiguous(memory_format=...)` cannot be mapped.
    """
    if tensor.dim() != 4:
        return tensor
    if innermost:
        return tensor.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    return tensor.contiguous()
