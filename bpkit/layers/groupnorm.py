"""GroupNorm: groups of channels of each sample are brought to mean 0 and variance 1.

    y[n,g,k,s] = w[g,k] z[n,g,k,s] + b[g,k],   z[n,g,k,s] = (x[n,g,k,s] - μ[n,g]) r[n,g]

n: sample, g: group, k: channel of the group, s: position in space. The derivation is
`normalization.py`'s, with a statistic for each (n, g) and a weight for each channel (g, k).

Saved: x, and μ and r, two numbers a group.
Source: Wu & He, "Group normalization", 2018.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bpkit.core.layout import channels_last, laid_out
from bpkit.core.module import Handwritten
from bpkit.core.refusal import refuse_unless_empty
from bpkit.core.spec import LayerSpec, Sample, nbytes, randn
from bpkit.layers.normalization import Normalization, keep


class GroupNormFunction(Normalization):
    """`(x [n, c, *], w [c] | None, b [c] | None, groups, eps) -> (y [n, c, *], μ [n, g], r [n, g])`."""

    autocast = {"cuda": "fp32"}

    @staticmethod
    def forward(
        input: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch, channels, *space = input.shape
        dense = laid_out(input, True) if channels_last(input) else input.contiguous()
        # torch's kernel reads all of them by their memory, whatever their strides.
        weight, bias = (None if each is None else each.contiguous() for each in (weight, bias))
        return torch.native_group_norm(dense, weight, bias, batch, channels, math.prod(space), groups, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        input, _, _, groups, eps = inputs
        _, mean, rstd = output
        ctx.mark_non_differentiable(mean, rstd)
        batch, channels, *space = input.shape
        view = (batch, groups, channels // groups, math.prod(space))
        keep(ctx, inputs, mean, rstd, view, (2, 3), eps, (batch, groups, 1, 1), (1, *view[1:3], 1))


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """`torch.nn.functional.group_norm` with a hand-written backward.

    Args:
        input: `[n, c, *]`.
        num_groups: how many groups the c channels are parted into.
        weight: `[c]`, the scale.
        bias: `[c]`, the shift.
        eps: added to the variance.

    Returns:
        `[n, c, *]`.

    Raises:
        RuntimeError: shapes that do not go together, in torch's words.
        ValueError: one value a group, likewise.
    """
    if not _well_formed(input, num_groups, weight, bias):
        refuse_unless_empty(nn.functional.group_norm, input, num_groups, weight, bias, eps)
    return GroupNormFunction.call(input, weight, bias, num_groups, eps)[0]


def _well_formed(input: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None) -> bool:
    if input.dim() < 2 or groups < 1 or input.shape[1] % groups or not input.is_floating_point():
        return False
    if any(each is not None and each.shape != input.shape[1:2] for each in (weight, bias)):
        return False
    return input.numel() > input.shape[0] * groups


class GroupNorm(Handwritten, nn.GroupNorm):
    """`torch.nn.GroupNorm` with a hand-written backward."""

    def forward(self, input: Tensor) -> Tensor:
        return group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


def _samples() -> Iterable[Sample]:
    yield Sample(args=(2, 4), inputs=(randn(2, 4, 2, 3),))
    yield Sample(args=(1, 3), inputs=(randn(3, 3),), label="one group, no space")
    yield Sample(args=(3, 3), kwargs={"bias": False}, inputs=(randn(2, 3, 4),), label="no bias")
    yield Sample(args=(2, 4), kwargs={"affine": False}, inputs=(randn(2, 4, 3),), label="not affine")


def _saved_bytes(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> int:
    (input,) = inputs
    groups = input.shape[0] * module.num_groups
    return nbytes(input) + int(2 * groups * max(4, input.element_size()))


SPECS = (
    LayerSpec(
        name="GroupNorm",
        module=GroupNorm,
        reference=nn.GroupNorm,
        samples=_samples,
        saves="input, two numbers a group",
        saved_bytes=_saved_bytes,
        aliases=("group_norm",),
        summary="normalisation of groups of channels",
    ),
)
