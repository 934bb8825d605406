"""What is divided by a norm of itself: `normalize`, and the weights of weight norm and spectral norm.

normalize (p = 2), along an axis k, with n = ‖x‖ and m = max(n, ε):

    y[k] = x[k] / m             ∂L/∂x[k] = (δ[k] - [n ≥ ε] y[k] Σⱼ δ[j] y[j]) / m

Weight norm, w = g v/‖v‖, a norm for each position c of one axis, or one of everything; k: the other axes:

    u[c,k] = v[c,k] / n[c],   n[c] = (Σₖ v[c,k]²)^½,   w[c,k] = g[c] u[c,k]
    ∂L/∂g[c] = Σₖ δ[c,k] u[c,k]         ∂L/∂v[c,k] = g[c]/n[c] (δ[c,k] - u[c,k] Σⱼ δ[c,j] u[c,j])

Spectral norm, W/σ with σ = aᵀ W b, where a and b, the singular vectors that the power method has found, are
constants (the derivative of σ by a singular vector is 0 where they are exact):

    w[i,j] = W[i,j] / σ                 ∂L/∂W[i,j] = (δ[i,j] - a[i] b[j] Σ δ[k,l] w[k,l]) / σ

Saved: x and one number a row; v and g, which are parameters; W, a parameter, and a and b.
Sources: Salimans & Kingma, "Weight normalization", 2016, eq. (3); Miyato et al., "Spectral normalization for
generative adversarial networks", 2018, eq. (12).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from bpkit import ops
from bpkit.core.function import Function
from bpkit.core.module import Handwritten
from bpkit.core.precision import widen


class NormalizeFunction(Function):
    """`(x [*], dim, eps) -> (y [*], m [*], 1 along dim)`, by the Euclidean norm."""

    autocast = {"cuda": "fp32"}

    @staticmethod
    def forward(input: Tensor, dim: Any, eps: float) -> tuple[Tensor, Tensor]:
        size = input.norm(2.0, dim, keepdim=True).clamp_min(eps)
        return input / size, size

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        input, ctx.dim, ctx.eps = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(input, output[1])

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, *_: None) -> tuple[Tensor | None, None, None]:
        if grad_output is None:
            return None, None, None
        input, size = ctx.saved_tensors
        if torch.is_grad_enabled():
            size = input.norm(2.0, ctx.dim, keepdim=True).clamp_min(ctx.eps)
        output = input / size
        product = grad_output * output.conj()
        along = (product.real if product.is_complex() else product).sum(ctx.dim, keepdim=True)
        # At 0, where the norm has no derivative, and below ε the denominator is a constant.
        along = torch.where(input.norm(2.0, ctx.dim, keepdim=True) < ctx.eps, 0.0, along)
        return (grad_output - output * along) / size, None, None


def normalize(
    input: Tensor, p: float = 2.0, dim: Any = 1, eps: float = 1e-12, out: Tensor | None = None
) -> Tensor:
    """`torch.nn.functional.normalize` with a hand-written backward.

    Args:
        input: `[*]`, real or complex.
        p: of the norm.
        dim: the axis, or axes, that the norm is taken over.
        eps: the least that is divided by.
        out: where to put the result; not differentiable then.

    Returns:
        `[*]`.
    """
    if out is not None:
        return nn.functional.normalize(input, p, dim, eps, out)
    if p == 2:
        return NormalizeFunction.call(input, dim, eps)[0]
    size = ops.clamp(ops.norm(input, p, dim, keepdim=True), min=eps)
    return ops.div(input, size.expand_as(input))


class WeightNormFunction(Function):
    """`(v [*], g, dim) -> w [*]`; g has v's size along `dim`; -1: one norm of all."""

    @staticmethod
    def forward(direction: Tensor, magnitude: Tensor, dim: int) -> Tensor:
        return torch._weight_norm(direction, magnitude, dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        direction, magnitude, ctx.dim = inputs
        ctx.save_for_backward(direction, magnitude)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        direction, magnitude = ctx.saved_tensors
        # In float32: the square of a norm of 256 is beyond float16.
        wide, delta = widen(direction), widen(grad_output)
        axes = [axis for axis in range(wide.dim()) if ctx.dim == -1 or axis != ctx.dim % wide.dim()]
        size = (wide * wide).sum(axes, keepdim=True).sqrt()
        unit = wide / size
        along = (delta * unit).sum(axes, keepdim=True)
        grad_direction = grad_magnitude = None
        if ctx.needs_input_grad[0]:
            grad_direction = ((delta - unit * along) * (widen(magnitude) / size)).to(direction.dtype)
        if ctx.needs_input_grad[1]:
            grad_magnitude = along.reshape(magnitude.shape).to(magnitude.dtype)
        return grad_direction, grad_magnitude, None


class SpectralNormFunction(Function):
    """`(W [*], a [rows], b [columns], dim) -> [*]`: W by its σ as a matrix with axis `dim` as rows."""

    @staticmethod
    def forward(weight: Tensor, left: Tensor, right: Tensor, dim: int) -> Tensor:
        return weight / _sigma(weight, left, right, dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        weight, left, right, ctx.dim = inputs
        ctx.save_for_backward(weight, left, right)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, None]:
        weight, left, right = ctx.saved_tensors
        sigma = _sigma(weight, left, right, ctx.dim)
        rest = weight.movedim(ctx.dim, 0).shape
        outer = torch.outer(left, right).reshape(rest).movedim(0, ctx.dim)  #      a b
        along = (grad_output * weight).sum() / sigma  #                            Σ δ w
        return (grad_output - outer * along) / sigma, None, None, None


def _sigma(weight: Tensor, left: Tensor, right: Tensor, dim: int) -> Tensor:
    return torch.dot(left, torch.mv(weight.movedim(dim, 0).flatten(1), right))


class WeightNorm(Handwritten, parametrizations._WeightNorm):
    """The parametrisation of `torch.nn.utils.parametrizations.weight_norm`, with a hand-written backward."""

    def forward(self, weight_g: Tensor, weight_v: Tensor) -> Tensor:
        return WeightNormFunction.call(weight_v, weight_g, self.dim)


class SpectralNorm(Handwritten, parametrizations._SpectralNorm):
    """The parametrisation of `torch.nn.utils.parametrizations.spectral_norm`, by hand."""

    def forward(self, weight: Tensor) -> Tensor:
        if weight.ndim == 1:
            return normalize(weight, dim=0, eps=self.eps)
        if weight.is_complex():
            raise NotImplementedError(
                "spectral_norm: bpkit has no backward for complex weights; leave the module out with "
                "bpkit.convert(model, exclude=...)"
            )
        if self.training:
            matrix = self._reshape_weight_to_matrix(weight.detach())
            self._power_method(matrix, self.n_power_iterations)
        # Copies: the next call moves the vectors in place, and this one's backward may come after it.
        return SpectralNormFunction.call(weight, self._u.clone(), self._v.clone(), self.dim)


# Not layers that a user makes by name, so they have no spec; `bpkit.convert` swaps them within a model.
TWINS: Mapping[type[nn.Module], type[nn.Module]] = {
    parametrizations._WeightNorm: WeightNorm,
    parametrizations._SpectralNorm: SpectralNorm,
}
