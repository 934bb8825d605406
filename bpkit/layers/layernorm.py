"""LayerNorm: the trailing axes are brought to mean 0 and variance 1, then scaled and shifted.

    μ[n] = 1/D Σ_d x[n,d],   r[n] = (1/D Σ_d (x[n,d] - μ[n])² + ε)^(-1/2),   z[n,d] = (x[n,d] - μ[n]) r[n]
    y[n,d] = w[d] z[n,d] + b[d]                        n: leading axes, d: the D normalised positions

    ∂L/∂w[d] = Σₙ δ[n,d] z[n,d]             ∂L/∂b[d] = Σₙ δ[n,d]

With γ[n,d] = δ[n,d] w[d], and since ∂z[n,e]/∂x[n,d] = r[n] ([e = d] - 1/D - z[n,e] z[n,d] / D):

    ∂L/∂x[n,d] = r[n] (γ[n,d] - 1/D Σₑ γ[n,e] - z[n,d] 1/D Σₑ γ[n,e] z[n,e])

Saved: x, μ, r (two numbers a row). μ and r depend on x, so a backward that is itself differentiated
computes them again from x.
Source: Ba, Kiros & Hinton, "Layer normalization", 2016.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bpkit.core.function import Function
from bpkit.core.fuse import formula
from bpkit.core.module import Handwritten
from bpkit.core.precision import widen
from bpkit.core.spec import LayerSpec, Sample, nbytes, randn


@formula
def _input_gradient(
    grad_output: Tensor, input: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, dims: list[int]
) -> Tensor:
    scaled = widen(grad_output) if weight is None else widen(grad_output) * widen(weight)  # γ
    normalized = (widen(input) - mean) * rstd  # z
    inner = (scaled * normalized).mean(dims, keepdim=True)
    return (rstd * (scaled - scaled.mean(dims, keepdim=True) - normalized * inner)).to(input.dtype)


@formula
def _weight_gradient(
    grad_output: Tensor, input: Tensor, mean: Tensor, rstd: Tensor, leading: list[int]
) -> Tensor:
    return _sum(widen(grad_output) * ((widen(input) - mean) * rstd), leading)


def _sum(tensor: Tensor, dims: list[int]) -> Tensor:
    return tensor.sum(dims) if dims else tensor  # torch takes no axes for all of them


class LayerNormFunction(Function):
    """`(x [*, D], normalized_shape, w [D] | None, b [D] | None, eps) -> (y [*, D], μ [*, 1], r [*, 1])`."""

    autocast = {"cuda": "fp32"}

    @staticmethod
    def forward(
        input: Tensor, shape: tuple[int, ...], weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        return torch.native_layer_norm(input, shape, weight, bias, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        input, shape, weight, bias, ctx.eps = inputs
        _, mean, rstd = output
        ctx.mark_non_differentiable(mean, rstd)
        ctx.set_materialize_grads(False)
        ctx.axes = len(shape)
        ctx.bias_dtype = None if bias is None else bias.dtype
        needs_statistics = ctx.needs_input_grad[0] or ctx.needs_input_grad[2]
        ctx.save_for_backward(
            *((input, mean, rstd) if needs_statistics else (None, None, None)),
            weight if ctx.needs_input_grad[0] or ctx.needs_input_grad[2] else None,
        )

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad_output is None:
            return None, None, None, None, None
        input, mean, rstd, weight = ctx.saved_tensors
        axes = list(range(grad_output.dim()))
        dims, leading = axes[-ctx.axes :], axes[: -ctx.axes]
        grad_input = grad_weight = grad_bias = None
        if input is not None and torch.is_grad_enabled():
            variance, mean = torch.var_mean(widen(input), dims, correction=0, keepdim=True)
            rstd = (variance + ctx.eps).rsqrt()
        elif input is not None:
            mean, rstd = widen(mean), widen(rstd)
        if ctx.needs_input_grad[0]:
            grad_input = _input_gradient(grad_output, input, mean, rstd, weight, dims)
        if ctx.needs_input_grad[2]:
            grad_weight = _weight_gradient(grad_output, input, mean, rstd, leading).to(weight.dtype)
        if ctx.needs_input_grad[3]:
            grad_bias = _sum(widen(grad_output), leading).to(ctx.bias_dtype)
        return grad_input, None, grad_weight, grad_bias, None


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
    return LayerNormFunction.call(input, tuple(normalized_shape), weight, bias, eps)[0]


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
