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
def _gradients(
    grad_output: Tensor,
    input: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias_dtype: torch.dtype | None,
    needs: tuple[bool, bool, bool],
    axes: int,
) -> tuple[Tensor | None, ...]:
    """All three in one formula: z and δ z serve the input and the weight (64 x 128: 4 kernels fewer)."""
    dims, leading = _axes(grad_output, axes)
    grad_input = grad_weight = grad_bias = None
    delta = widen(grad_output)
    normalized = (widen(input) - mean) * rstd  #                                   z
    product = delta * normalized  #                                                δ z
    if needs[0]:
        scaled, inner = delta, product  #                                          γ, γ z
        if weight is not None:
            scaled, inner = delta * widen(weight), product * widen(weight)
        means = scaled.mean(dims, keepdim=True), inner.mean(dims, keepdim=True)
        grad_input = ((scaled - torch.addcmul(means[0], normalized, means[1])) * rstd).to(input.dtype)
    if needs[1] and weight is not None:
        grad_weight = _sum(product, leading).to(weight.dtype)
    if needs[2]:
        grad_bias = _sum(delta, leading).to(bias_dtype)
    return grad_input, grad_weight, grad_bias


def _axes(grad_output: Tensor, normalized: int) -> tuple[list[int], list[int]]:
    """The axes that are normalised over, and those before them."""
    axes = list(range(grad_output.dim()))
    return axes[-normalized:], axes[:-normalized]


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
        if input is None:  # the bias alone wants a gradient
            leading = _axes(grad_output, ctx.axes)[1]
            return None, None, None, _sum(widen(grad_output), leading).to(ctx.bias_dtype), None
        if torch.is_grad_enabled():
            dims = _axes(grad_output, ctx.axes)[0]
            variance, mean = torch.var_mean(widen(input), dims, correction=0, keepdim=True)
            rstd = (variance + ctx.eps).rsqrt()
        else:
            mean, rstd = widen(mean), widen(rstd)
        needs = (ctx.needs_input_grad[0], *ctx.needs_input_grad[2:4])
        grad_input, grad_weight, grad_bias = _gradients(
            grad_output, input, mean, rstd, weight, ctx.bias_dtype, needs, ctx.axes
        )
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
