"""Convolution over n axes: the one form that convolutions and their transposes are made of.

    T(δ, x, w) = Σ_{n,o,i,p,k} δ[n,o,p] x[n,i, s p + d k - a] w[o,i,k]

    n: batch, i: in channel, o: out channel; p: output position, k: tap, each with one index an axis;
    s: stride, d: dilation, a: padding (x is 0 outside).  With groups, o goes with the i of its own group.

T is linear in each argument, so each of its three derivatives is T without that argument:

    ∂T/∂δ[n,o,p] = Σ_{i,k} x[n,i, s p + d k - a] w[o,i,k]                     `correlated`
    ∂T/∂x[n,i,q] = Σ_{o,k} δ[n,o,p] w[o,i,k]   over p with s p + d k - a = q  `transposed`
    ∂T/∂w[o,i,k] = Σ_{n,p} δ[n,o,p] x[n,i, s p + d k - a]                     `weight_gradient`

A convolution is the first, with the other two for its backward (`conv.py`); a transposed convolution is the
second, with the first and the third (`conv_transpose.py`). The third is itself a convolution: batch and
channel swap roles, as do stride and dilation. That is what a double backward differentiates. Where no graph
is wanted, the vendor's kernel computes the same sum (`core/purity.py`, with the measurement).

Source: LeCun et al., "Backpropagation applied to handwritten zip code recognition", 1989; Dumoulin &
Visin, "A guide to convolution arithmetic for deep learning", 2016, ch. 4.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from bpkit.core.purity import correlate_weight

Sizes = tuple[int, ...]

# By the number of axes: these take complex tensors, which `torch.convolution` does not.
CORRELATE: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSE: dict[int, Callable[..., Tensor]] = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}


def correlated(
    input: Tensor, weight: Tensor, stride: Sizes, padding: Sizes, dilation: Sizes, groups: int
) -> Tensor:
    """∂T/∂δ, [n, o, *p]."""
    return CORRELATE[len(stride)](input, weight, None, stride, padding, dilation, groups)


def transposed(
    delta: Tensor, weight: Tensor, size: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, groups: int
) -> Tensor:
    """∂T/∂x, [n, i, *size]; positions that the stride leaves over at the end get zeros."""
    left_over = tuple(
        q - ((p - 1) * s - 2 * a + d * (k - 1) + 1)
        for q, p, k, s, a, d in zip(
            size, delta.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True
        )
    )
    return TRANSPOSE[len(stride)](delta, weight, None, stride, padding, left_over, groups, dilation)


def weight_gradient(
    delta: Tensor,
    input: Tensor,
    weight: Tensor,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    groups: int,
) -> Tensor:
    """∂T/∂w, shaped as `weight`, whose values are not read."""
    if not torch.is_grad_enabled() and not delta.is_complex():
        return correlate_weight(delta, input, weight, stride, padding, dilation, groups)
    if not input.numel() or not delta.numel():
        return (delta.sum() * input.sum()).expand(weight.shape).clone()  # 0, of the graph
    n, channels = input.shape[:2]
    by_group = input.reshape(n, groups, channels // groups, *input.shape[2:])
    swapped = by_group.movedim(0, 2).transpose(0, 1).flatten(1, 2)  #        [i/g, g n, *q]
    kernel = delta.transpose(0, 1)  #                                        [o, n, *p]
    taps = CORRELATE[len(stride)](swapped, kernel, None, dilation, padding, stride, groups).transpose(0, 1)
    for axis, k in enumerate(weight.shape[2:], start=2):
        taps = taps.narrow(axis, 0, k)  # what the stride left over would be further taps
    return taps


def channel_sum(delta: Tensor) -> Tensor:
    """∂L/∂b: `[n, c, *axes]` summed to `[c]`."""
    return delta.sum((0, *range(2, delta.dim())))
