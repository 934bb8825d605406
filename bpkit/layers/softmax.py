"""Softmax and LogSoftmax along one axis.

    y[k] = exp(x[k]) / Σⱼ exp(x[j])                                      k, j: along the axis
    ∂y[k]/∂x[i] = y[k] ([k = i] - y[i])
    ∂L/∂x[i] = Σₖ δ[k] y[k] ([k = i] - y[i]) = y[i] (δ[i] - Σₖ δ[k] y[k])

    l[k] = ln y[k] = x[k] - ln Σⱼ exp(x[j])
    ∂L/∂x[i] = δ[i] - exp(l[i]) Σₖ δ[k]

Saved: the output, as torch does; the input is not needed.
Source: Bridle, "Probabilistic interpretation of feedforward classification network outputs", 1990.
"""

from __future__ import annotations

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
    """`(x [*], dim) -> [*]`."""

    autocast = {"cuda": "fp32"}

    @staticmethod
    def forward(input: Tensor, dim: int) -> Tensor:
        return input.softmax(dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(output)
        ctx.dim = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        (output,) = ctx.saved_tensors
        return _softmax_gradient(grad_output, output, ctx.dim), None


class LogSoftmaxFunction(SoftmaxFunction):
    """`(x [*], dim) -> [*]`."""

    @staticmethod
    def forward(input: Tensor, dim: int) -> Tensor:
        return input.log_softmax(dim)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        (output,) = ctx.saved_tensors
        return _log_softmax_gradient(grad_output, output, ctx.dim), None


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
    return function.call(input if dtype is None else input.to(dtype), dim)


class Softmax(Handwritten, nn.Softmax):
    """`torch.nn.Softmax` with a hand-written backward."""

    def forward(self, input: Tensor) -> Tensor:
        return softmax(input, self.dim, _stacklevel=5)


class LogSoftmax(Handwritten, nn.LogSoftmax):
    """`torch.nn.LogSoftmax` with a hand-written backward."""

    def forward(self, input: Tensor) -> Tensor:
        return log_softmax(input, self.dim, _stacklevel=5)


def _samples() -> Iterable[Sample]:
    yield Sample(args=(-1,), inputs=(randn(3, 5),))
    yield Sample(args=(1,), inputs=(randn(2, 4, 3),), label="inner axis")
    yield Sample(args=(0,), inputs=(3 * randn(6),), label="one axis, steep")


SPECS = tuple(
    LayerSpec(
        name=module.__name__,
        module=module,
        reference=reference,
        samples=_samples,
        saves="output",
        saved_bytes=lambda module, inputs, output: nbytes(output),
        aliases=(alias,),
        summary=summary,
    )
    for module, reference, alias, summary in (
        (Softmax, nn.Softmax, "softmax", "probabilities along an axis"),
        (LogSoftmax, nn.LogSoftmax, "log_softmax", "log-probabilities along an axis"),
    )
)
