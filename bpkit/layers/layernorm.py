"""LayerNorm: each leading position is brought to mean 0 and variance 1 over the trailing axes.

    y[n,d] = w[d] z[n,d] + b[d],   z[n,d] = (x[n,d] - μ[n]) r[n]         n: leading axes, d: the D normalised

The derivation is `normalization.py`'s, with a statistic for each n and a weight for each d:

    ∂L/∂x[n,d] = r[n] (γ[n,d] - 1/D Σₑ γ[n,e] - z[n,d] 1/D Σₑ γ[n,e] z[n,e]),    γ[n,d] = δ[n,d] w[d]

Saved: x, μ, r (two numbers a row).
Source: Ba, Kiros & Hinton, "Layer normalization", 2016.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bpkit.core.module import Handwritten
from bpkit.core.spec import LayerSpec, Sample, nbytes, randn
from bpkit.layers.normalization import Normalization, in_blocks, keep


class LayerNormFunction(Normalization):
    """`(x [*, D], w [D] | None, b [D] | None, normalized_shape, eps) -> (y [*, D], μ [*, 1], r [*, 1])`."""

    autocast = {"cuda": "fp32"}

    @staticmethod
    def forward(
        input: Tensor, weight: Tensor | None, bias: Tensor | None, shape: tuple[int, ...], eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        return torch.native_layer_norm(input, shape, weight, bias, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        input, _, _, shape, eps = inputs
        _, mean, rstd = output
        ctx.mark_non_differentiable(mean, rstd)
        rows = math.prod(input.shape[: input.dim() - len(shape)])
        blocks, width = in_blocks(rows), math.prod(shape)
        keep(ctx, inputs, mean, rstd, (*blocks, width, 1), (2, 3), eps, (*blocks, 1, 1), (1, 1, width, 1))


def layer_norm(
    input: Tensor,
    normalized_shape: list[int] | tuple[int, ...],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """`torch.nn.functional.layer_norm` with a hand-written backward.

    Args:
        input: `[*, D]`, where D stands for the axes of `normalized_shape`.
        normalized_shape: the sizes of the trailing axes to normalise over.
        weight: `[D]`, the scale.
        bias: `[D]`, the shift.
        eps: added to the variance.

    Returns:
        `[*, D]`.

    Raises:
        RuntimeError: shapes that do not go together, in torch's words.
    """
    return LayerNormFunction.call(input, weight, bias, tuple(normalized_shape), eps)[0]


class LayerNorm(Handwritten, nn.LayerNorm):
    """`torch.nn.LayerNorm` with a hand-written backward."""

    def forward(self, input: Tensor) -> Tensor:
        return layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)


def _samples() -> Iterable[Sample]:
    yield Sample(args=(5,), inputs=(randn(4, 5),))
    yield Sample(args=([3, 2],), inputs=(randn(2, 2, 3, 2),), label="two axes")
    yield Sample(args=(4,), kwargs={"bias": False}, inputs=(randn(3, 4),), label="no bias")
    yield Sample(args=(4,), kwargs={"elementwise_affine": False}, inputs=(randn(2, 4),), label="not affine")


def _saved_bytes(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> int:
    (input,) = inputs
    rows = input.numel() // max(1, torch.Size(module.normalized_shape).numel())  # type: ignore[arg-type]
    return nbytes(input) + 2 * rows * max(4, input.element_size())


SPECS = (
    LayerSpec(
        name="LayerNorm",
        module=LayerNorm,
        reference=nn.LayerNorm,
        samples=_samples,
        saves="input, two numbers a row",
        saved_bytes=_saved_bytes,
        aliases=("layer_norm",),
        summary="normalisation over trailing axes",
    ),
)
