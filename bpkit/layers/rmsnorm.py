"""RMSNorm: each leading position is scaled to a root mean square of 1 over the trailing axes.

    y[n,d] = w[d] z[n,d],   z[n,d] = x[n,d] r[n],   r[n] = (1/D Σ_d x[n,d]² + ε)^(-1/2)

n: leading axes, d: the D normalised positions. The derivation is `normalization.py`'s without a mean:

    ∂L/∂x[n,d] = r[n] (γ[n,d] - z[n,d] 1/D Σₑ γ[n,e] z[n,e]),    γ[n,d] = δ[n,d] w[d]

Saved: x and r, one number a row; torch, which has no kernel for it on CPU, keeps x twice.
Source: Zhang & Sennrich, "Root mean square layer normalization", 2019.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bpkit.core.fuse import formula
from bpkit.core.module import Handwritten
from bpkit.core.precision import LOW_PRECISION, widen
from bpkit.core.refusal import refuse
from bpkit.core.spec import LayerSpec, Sample, nbytes, randn
from bpkit.layers.normalization import Normalization, in_blocks, keep


@formula
def _scaled(input: Tensor, weight: Tensor | None, axes: int, eps: float) -> tuple[Tensor, Tensor]:
    wide = widen(input)
    rstd = (wide.square().mean(tuple(range(-axes, 0)), keepdim=True) + eps).rsqrt()
    scaled = wide * rstd
    return (scaled if weight is None else scaled * weight).to(input.dtype), rstd


class RMSNormFunction(Normalization):
    """`(x [*, D], w [D] | None, None, axes, eps) -> (y [*, D], r [*, 1])`."""

    autocast = {"cuda": "fp32"}

    @staticmethod
    def forward(
        input: Tensor, weight: Tensor | None, bias: None, axes: int, eps: float
    ) -> tuple[Tensor, Tensor]:
        return _scaled(input, weight, axes, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        input, _, _, axes, eps = inputs
        rstd = output[1]
        ctx.mark_non_differentiable(rstd)
        leading, trailing = input.shape[:-axes], input.shape[-axes:]
        blocks, width = in_blocks(math.prod(leading)), math.prod(trailing)
        keep(ctx, inputs, None, rstd, (*blocks, width, 1), (2, 3), eps, (*blocks, 1, 1), (1, 1, width, 1))


def rms_norm(
    input: Tensor,
    normalized_shape: list[int] | tuple[int, ...],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """`torch.nn.functional.rms_norm` with a hand-written backward.

    Args:
        input: `[*, D]`, where D stands for the axes of `normalized_shape`; real or complex.
        normalized_shape: the sizes of the trailing axes to normalise over.
        weight: `[D]`, the scale.
        eps: added to the mean square; left out, the machine epsilon of the type that it is computed in.

    Returns:
        `[*, D]`.

    Raises:
        RuntimeError: shapes that do not go together, in torch's words.
    """
    shape = tuple(normalized_shape)
    sound = bool(shape) and tuple(input.shape[-len(shape) :]) == shape
    sound = sound and (weight is None or tuple(weight.shape) == shape)
    if not sound or not (input.is_floating_point() or input.is_complex()):
        refuse(nn.functional.rms_norm, input, list(shape), weight, eps)
    if eps is None:
        eps = torch.finfo(torch.float32 if input.dtype in LOW_PRECISION else input.dtype).eps
    return RMSNormFunction.call(input, weight, None, len(shape), eps)[0]


class RMSNorm(Handwritten, nn.RMSNorm):
    """`torch.nn.RMSNorm` with a hand-written backward."""

    def forward(self, input: Tensor) -> Tensor:
        return rms_norm(input, self.normalized_shape, self.weight, self.eps)


def _samples() -> Iterable[Sample]:
    yield Sample(args=(5,), inputs=(randn(4, 5),))
    yield Sample(args=([3, 2], 1e-3), inputs=(randn(2, 2, 3, 2),), label="two axes")
    yield Sample(args=(4,), kwargs={"elementwise_affine": False}, inputs=(randn(2, 4),), label="not affine")


def _saved_bytes(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> int:
    (input,) = inputs
    rows = input.numel() // max(1, torch.Size(module.normalized_shape).numel())  # type: ignore[arg-type]
    return nbytes(input) + rows * max(4, input.element_size())


SPECS = (
    LayerSpec(
        name="RMSNorm",
        module=RMSNorm,
        reference=nn.RMSNorm,
        samples=_samples,
        saves="input, one number a row",
        saved_bytes=_saved_bytes,
        aliases=("rms_norm",),
        summary="scaling of trailing axes to a root mean square of 1",
    ),
)
