"""Memory formats: a gradient comes back laid out as its input, so that no later kernel has to convert it."""

from __future__ import annotations

from torch import Tensor


def channels_last(tensor: Tensor) -> bool:
    """Whether `tensor`, `[n, c, h, w]` or `[n, c, d, h, w]`, has its channels innermost in memory."""
    if tensor.dim() not in (4, 5):
        return False
    sizes, strides = tensor.shape, tensor.stride()
    reach = channels = sizes[1]
    if channels < 2 or strides[1] != 1:
        return False
    for axis in range(tensor.dim() - 1, 1, -1):
        if strides[axis] < reach:
            return False
        reach = strides[axis] * sizes[axis]
    return True


def laid_out(tensor: Tensor, innermost: bool) -> Tensor:
    """A batch of images or volumes, channels innermost in memory or outermost; a copy only if it is not so.

    Written with `movedim`: `contiguous(memory_format=...)` cannot be mapped.
    """
    if tensor.dim() not in (4, 5):
        return tensor
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1) if innermost else tensor.contiguous()
