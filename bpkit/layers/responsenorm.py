"""LocalResponseNorm and CrossMapLRN2d: each channel is divided by the strength of its neighbours.

    d[c] = k + α/size Σⱼ S[c,j] x[j]²        y[c] = x[c] d[c]^-β            c, j: channels, at one position

S[c,j] is 1 where j is in the window of c, else 0: from c - ⌊size/2⌋ to c + ⌊(size-1)/2⌋ in
LocalResponseNorm, from c - ⌊(size-1)/2⌋ to c + ⌊(size-1)/2⌋ in CrossMapLRN2d. Since ∂d[j]/∂x[c] =
2 α/size S[j,c] x[c]:

    ∂L/∂x[c] = δ[c] d[c]^-β - 2 α β/size x[c] Σⱼ S[j,c] δ[j] x[j] d[j]^(-β-1)

and the transpose of a window is the window turned round.

torch's CrossMapLRN2d never takes channel 0 out of the sum that it slides, so there S[c,0] is 1 for all
later c as well; the values here are torch's, and the gradient is theirs. torch's own gradient is not: it
has its windows one channel further down.

Saved: x; d is computed again.
Source: Krizhevsky, Sutskever & Hinton, "ImageNet classification with deep convolutional neural networks",
2012, sec. 3.3.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from bpkit.core.function import Function
from bpkit.core.fuse import formula
from bpkit.core.layout import channels_last, laid_out
from bpkit.core.module import Handwritten
from bpkit.core.precision import in_float32
from bpkit.core.spec import LayerSpec, Sample, nbytes, randn


def _window(values: Tensor, before: int, after: int) -> Tensor:
    """Σ over the channels from c - before to c + after."""
    channels = values.shape[1]
    space = (0, 0) * (values.dim() - 2)
    padded = pad(values, (*space, before, after))
    total = padded.narrow(1, 0, channels)
    for shift in range(1, before + after + 1):
        total = total + padded.narrow(1, shift, channels)
    return total


def _stays(values: Tensor, first: int) -> Tensor:
    """Channel 0 in those from `first` on, the rest 0."""
    space = (0, 0) * (values.dim() - 2)
    more = values.shape[1] - first
    return pad(values[:, :1].expand(-1, more, *values.shape[2:]), (*space, first, 0))


def _stays_transposed(values: Tensor, first: int) -> Tensor:
    space = (0, 0) * (values.dim() - 2)
    return pad(values[:, first:].sum(1, keepdim=True), (*space, 0, values.shape[1] - 1))


def _denominator(input: Tensor, before: int, after: int, stays: int, scale: float, k: float) -> Tensor:
    squares = input * input
    total = _window(squares, before, after)
    if 0 < stays < input.shape[1]:
        total = total + _stays(squares, stays)
    return total * scale + k


def _power(base: Tensor, exponent: float) -> Tensor:
    """By the logarithm where that exists; 1 M floats on AVX2: 4 ms, and 8 by torch's pow."""
    return base**exponent if exponent == int(exponent) else torch.exp(torch.log(base) * exponent)


@formula
@in_float32
def _response(
    input: Tensor, before: int, after: int, stays: int, scale: float, beta: float, k: float
) -> Tensor:
    return input * _power(_denominator(input, before, after, stays, scale, k), -beta)


@formula
@in_float32
def _response_gradient(
    grad_output: Tensor,
    input: Tensor,
    before: int,
    after: int,
    stays: int,
    scale: float,
    beta: float,
    k: float,
) -> Tensor:
    denominator = _denominator(input, before, after, stays, scale, k)
    direct = grad_output * _power(denominator, -beta)
    ratio = direct * input / denominator
    total = _window(ratio, after, before)
    if 0 < stays < input.shape[1]:
        total = total + _stays_transposed(ratio, stays)
    return direct - 2 * scale * beta * input * total


class LocalResponseNormFunction(Function):
    """`(x [n, c, *], before, after, stays, α/size, β, k) -> [n, c, *]`; `stays`: see `_stays`, 0 for none."""

    autocast = {"cuda": "fp32"}

    @staticmethod
    def forward(
        input: Tensor, before: int, after: int, stays: int, scale: float, beta: float, k: float
    ) -> Tensor:
        return laid_out(_response(input, before, after, stays, scale, beta, k), channels_last(input))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, *ctx.settings = inputs
        ctx.channels_last = channels_last(input)
        ctx.save_for_backward(input)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (input,) = ctx.saved_tensors
        grad_input = _response_gradient(grad_output, input, *ctx.settings)
        return laid_out(grad_input, ctx.channels_last), *(None,) * len(ctx.settings)


def local_response_norm(
    input: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Tensor:
    """`torch.nn.functional.local_response_norm` with a hand-written backward.

    Args:
        input: `[n, c, *]`, three axes at least.
        size: channels in a window.
        alpha: weight of their mean square.
        beta: exponent of the denominator.
        k: added to it.

    Returns:
        `[n, c, *]`.

    Raises:
        ValueError: fewer than three axes, in torch's words.
    """
    if input.dim() < 3 or size < 1 or not input.is_floating_point():
        return nn.functional.local_response_norm(
            input, size, alpha, beta, k
        )  # raises; integers have no gradient
    if input.numel() == 0:
        return input
    return LocalResponseNormFunction.call(input, size // 2, (size - 1) // 2, 0, alpha / size, beta, k)


class LocalResponseNorm(Handwritten, nn.LocalResponseNorm):
    """`torch.nn.LocalResponseNorm` with a hand-written backward."""

    def forward(self, input: Tensor) -> Tensor:
        return local_response_norm(input, self.size, self.alpha, self.beta, self.k)


class CrossMapLRN2d(Handwritten, nn.CrossMapLRN2d):
    """`torch.nn.CrossMapLRN2d` with a hand-written backward: the gradient of what it computes."""

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() != 4:
            raise ValueError(f"CrossMapLRN2d: Expected input to be 4D, got {input.dim()}D instead.")
        reach = int((self.size - 1) / 2)
        scale = self.alpha / self.size
        return LocalResponseNormFunction.call(input, reach, reach, reach + 1, scale, self.beta, self.k)


def _samples() -> Iterable[Sample]:
    yield Sample(args=(3,), kwargs={"alpha": 0.5}, inputs=(randn(2, 4, 3),))
    yield Sample(args=(2, 1.0, 0.5, 2.0), inputs=(randn(2, 3, 2, 2),), label="even window")
    yield Sample(args=(5, 1.0), inputs=(randn(1, 3, 2, 1, 2),), label="window past the channels")


def _samples_cross_map() -> Iterable[Sample]:
    """Of one channel, where torch's gradient is right; the tests differentiate more of them numerically."""
    yield Sample(args=(3,), kwargs={"alpha": 0.5}, inputs=(randn(2, 1, 2, 3),))
    yield Sample(args=(5, 1.0, 0.5, 2.0), inputs=(randn(3, 1, 2, 2),), label="five")


SPECS = (
    LayerSpec(
        name="LocalResponseNorm",
        module=LocalResponseNorm,
        reference=nn.LocalResponseNorm,
        samples=_samples,
        saves="input",
        saved_bytes=lambda module, inputs, output: nbytes(inputs[0]),
        aliases=("local_response_norm",),
        summary="division by the strength of neighbouring channels",
    ),
    LayerSpec(
        name="CrossMapLRN2d",
        module=CrossMapLRN2d,
        reference=nn.CrossMapLRN2d,
        samples=_samples_cross_map,
        not_proven={
            "sizes": "torch's own gradient, the measure, is wrong for more than one channel",
            "precision": "torch's own gradient, the measure, is wrong for more than one channel",
        },
        saves="input",
        saved_bytes=lambda module, inputs, output: nbytes(inputs[0]),
        summary="division by the strength of neighbouring channels",
    ),
)
