"""Softmax, LogSoftmax, Softmin and Gumbel-Softmax along one axis.

    y[k] = exp(x[k]) / Σⱼ exp(x[j])                                      k, j: along the axis
    ∂y[k]/∂x[i] = y[k] ([k = i] - y[i])
    ∂L/∂x[i] = Σₖ δ[k] y[k] ([k = i] - y[i]) = y[i] (δ[i] - Σₖ δ[k] y[k])

    l[k] = ln y[k] = x[k] - ln Σⱼ exp(x[j])
    ∂L/∂x[i] = δ[i] - exp(l[i]) Σₖ δ[k]

Softmin is the softmax of -x, and Softmax2d that of the channels of an image. Gumbel-Softmax is
y = softmax((x + γ) / τ) with γ = -ln E, E ~ Exp(1), so ∂L/∂x is softmax's over τ; `hard`, it gives the
one-hot of y's largest and passes δ on to y as it is, the straight-through estimator.

Saved: the output, as torch does; the input is not needed.
Sources: Bridle, "Probabilistic interpretation of feedforward classification network outputs", 1990; Jang,
Gu & Poole, "Categorical reparameterization with Gumbel-Softmax", 2017.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bpkit.core.function import Function
from bpkit.core.fuse import formula
from bpkit.core.module import Handwritten
from bpkit.core.precision import in_float32
from bpkit.core.spec import LayerSpec, Sample, nbytes, randn


@formula
@in_float32
def _softmax_gradient(grad_output: Tensor, output: Tensor, dim: int) -> Tensor:
    weighted = grad_output * output
    return weighted - output * weighted.sum(dim, keepdim=True)


@formula
@in_float32
def _log_softmax_gradient(grad_output: Tensor, output: Tensor, dim: int) -> Tensor:
    return grad_output - output.exp() * grad_output.sum(dim, keepdim=True)


class SoftmaxFunction(Function):
    """`(x [*], dim, dtype) -> [*]`, cast to `dtype` first."""

    autocast = {"cuda": "fp32"}

    @staticmethod
    def forward(input: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
        return input.softmax(dim, dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(output)
        ctx.dtype, ctx.dim = inputs[0].dtype, inputs[1]

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (output,) = ctx.saved_tensors
        return _softmax_gradient(grad_output, output, ctx.dim).to(ctx.dtype), None, None


class LogSoftmaxFunction(SoftmaxFunction):
    """`(x [*], dim, dtype) -> [*]`."""

    @staticmethod
    def forward(input: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
        return input.log_softmax(dim, dtype)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (output,) = ctx.saved_tensors
        return _log_softmax_gradient(grad_output, output, ctx.dim).to(ctx.dtype), None, None


class SoftminFunction(SoftmaxFunction):
    """`(x [*], dim, dtype) -> [*]`."""

    @staticmethod
    def forward(input: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
        return (-input).softmax(dim, dtype)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (output,) = ctx.saved_tensors
        return _softmax_gradient(-grad_output, output, ctx.dim).to(ctx.dtype), None, None


class GumbelSoftmaxFunction(Function):
    """`(x [*], γ [*], τ, dim) -> [*]`."""

    autocast = {"cuda": "fp32"}

    @staticmethod
    def forward(logits: Tensor, noise: Tensor, tau: float, dim: int) -> Tensor:
        return ((logits + noise) / tau).softmax(dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, _, ctx.tau, ctx.dim = inputs
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (output,) = ctx.saved_tensors
        return _softmax_gradient(grad_output, output, ctx.dim) / ctx.tau, None, None, None


class StraightThroughFunction(Function):
    """`(y [*], dim) -> [*]`, the one-hot of y's largest along an axis."""

    @staticmethod
    def forward(soft: Tensor, dim: int) -> Tensor:
        largest = soft.max(dim, keepdim=True)[1]
        return torch.zeros_like(soft).scatter(dim, largest, 1.0) - soft + soft  # torch's own roundings

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        return grad_output, None


def softmax(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> Tensor:
    """`torch.nn.functional.softmax` with a hand-written backward.

    Args:
        input: `[*]`, any shape.
        dim: the axis that sums to one; left out, torch's old choice with its warning.
        dtype: cast the input to this before.

    Returns:
        `[*]`, the shape of `input`.

    Raises:
        IndexError: an axis that `input` does not have.
    """
    return _along("softmax", SoftmaxFunction, input, dim, _stacklevel, dtype)


def log_softmax(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> Tensor:
    """`torch.nn.functional.log_softmax` with a hand-written backward; arguments as `softmax`."""
    return _along("log_softmax", LogSoftmaxFunction, input, dim, _stacklevel, dtype)


def softmin(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> Tensor:
    """`torch.nn.functional.softmin` with a hand-written backward; arguments as `softmax`."""
    return _along("softmin", SoftminFunction, input, dim, _stacklevel, dtype)


def gumbel_softmax(
    logits: Tensor, tau: float = 1, hard: bool = False, eps: float = 1e-10, dim: int = -1
) -> Tensor:
    """`torch.nn.functional.gumbel_softmax` with a hand-written backward.

    Args:
        logits: `[*]`, unnormalised log-probabilities.
        tau: the temperature.
        hard: give one-hots, differentiated as if they were soft.
        eps: has no effect, in torch either.
        dim: the axis that sums to one.

    Returns:
        `[*]`, the shape of `logits`, drawn from torch's generator.
    """
    if eps != 1e-10:
        warnings.warn("`eps` parameter is deprecated and has no effect.", stacklevel=2)
    uniform = torch.empty_like(logits.detach(), memory_format=torch.legacy_contiguous_format)
    soft: Tensor = GumbelSoftmaxFunction.call(logits, -uniform.exponential_().log(), tau, dim)
    return StraightThroughFunction.call(soft, dim) if hard else soft


def _along(
    name: str,
    function: type[Function],
    input: Tensor,
    dim: int | None,
    stacklevel: int,
    dtype: torch.dtype | None,
) -> Tensor:
    if dim is None:
        dim = nn.functional._get_softmax_dim(name, input.dim(), stacklevel + 1)  # type: ignore[attr-defined]
    return function.call(input, dim, dtype)


class Softmax(Handwritten, nn.Softmax):
    """`torch.nn.Softmax` with a hand-written backward."""

    def forward(self, input: Tensor) -> Tensor:
        return softmax(input, self.dim, _stacklevel=5)


class LogSoftmax(Handwritten, nn.LogSoftmax):
    """`torch.nn.LogSoftmax` with a hand-written backward."""

    def forward(self, input: Tensor) -> Tensor:
        return log_softmax(input, self.dim, _stacklevel=5)


class Softmin(Handwritten, nn.Softmin):
    """`torch.nn.Softmin` with a hand-written backward."""

    def forward(self, input: Tensor) -> Tensor:
        return softmin(input, self.dim, _stacklevel=5)


class Softmax2d(Handwritten, nn.Softmax2d):
    """`torch.nn.Softmax2d` with a hand-written backward."""

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() not in (3, 4):
            raise ValueError(f"Softmax2d: expected input to be 3D or 4D, got {input.dim()}D instead")
        return softmax(input, -3)


def _samples() -> Iterable[Sample]:
    yield Sample(args=(-1,), inputs=(randn(3, 5),))
    yield Sample(args=(1,), inputs=(randn(2, 4, 3),), label="inner axis")
    yield Sample(args=(0,), inputs=(3 * randn(6),), label="one axis, steep")


def _images() -> Iterable[Sample]:
    yield Sample(inputs=(randn(2, 3, 2, 2),))
    yield Sample(inputs=(randn(4, 1, 2),), label="unbatched")


SPECS = tuple(
    LayerSpec(
        name=module.__name__,
        module=module,
        reference=reference,
        samples=_images if module is Softmax2d else _samples,
        saves="output",
        saved_bytes=lambda module, inputs, output: nbytes(output),
        aliases=alias,
        summary=summary,
    )
    for module, reference, alias, summary in (
        (Softmax, nn.Softmax, ("softmax",), "probabilities along an axis"),
        (LogSoftmax, nn.LogSoftmax, ("log_softmax",), "log-probabilities along an axis"),
        (Softmin, nn.Softmin, ("softmin",), "probabilities along an axis, the smallest first"),
        (Softmax2d, nn.Softmax2d, (), "probabilities of the channels"),
    )
)
