"""SyncBatchNorm: BatchNorm over the batches of all processes of a group.

    μ[c] = 1/N Σ x[n,c],   r[c] = (1/N Σ (x[n,c] - μ[c])² + ε)^(-1/2)  Σ over the N positions of all processes

L, the loss, is the sum of the processes' own. The derivation is `normalization.py`'s with the two sums in
∂L/∂x over all processes as well:

    ∂L/∂x[n,c] = w[c] r[c] (δ[n,c] - 1/N Σ δ[m,c] - z[n,c] 1/N Σ δ[m,c] z[m,c])

∂L/∂w and ∂L/∂b stay sums over this process's positions: adding them up is DistributedDataParallel's. A sum
over processes, y = Σₚ x⁽ᵖ⁾ on each of them, has ∂L/∂x⁽ᵖ⁾ = Σ_q δ⁽q⁾: the same sum again.

Saved: x, and μ, r and N, two numbers a channel and one.
Source: Zhang et al., "Context encoding for semantic segmentation", 2018, sec. 3; Ioffe & Szegedy, 2015.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bpkit.core.function import Function
from bpkit.core.layout import channels_last, laid_out
from bpkit.core.precision import widen
from bpkit.core.spec import LayerSpec, Sample, nbytes, randn
from bpkit.layers.batchnorm import HandwrittenBatchNorm
from bpkit.layers.normalization import input_gradient, partial_sums, summed

_OVER = (0, 2, 3)


class AllReduceFunction(Function):
    """`(x [*], group) -> [*]`: the sum of the processes' x, on each of them."""

    @staticmethod
    def forward(input: Tensor, group: Any) -> Tensor:
        total = input.clone()
        torch.distributed.all_reduce(total, group=group)
        return total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.group = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        return AllReduceFunction.call(grad_output, ctx.group), None


class SyncBatchNormFunction(Function):
    """`(x [n, c, *], w [c] | None, b [c] | None, eps, group) -> (y, μ [c], variance [c], N [1])`."""

    @staticmethod
    def forward(
        input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, group: Any
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean, variance, count = _statistics(_viewed(input), group)
        mean, variance = mean.flatten(), variance.flatten()
        if not input.numel():
            return torch.empty_like(input), mean, variance, count
        output = torch.batch_norm(input, weight, bias, mean, variance, False, 0.0, eps, False)
        return output, mean, variance, count

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        input, weight, bias, ctx.eps, ctx.group = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.channels_last = channels_last(input)
        ctx.dtypes = tuple(None if each is None else each.dtype for each in (weight, bias))
        ctx.save_for_backward(input, *output[1:], weight)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad_output is None:  # the other processes wait in their sums
            grad_output = torch.zeros_like(ctx.saved_tensors[0])
        input, mean, variance, count, weight = ctx.saved_tensors
        delta, viewed = _viewed(grad_output), _viewed(input)
        channels = (1, viewed.shape[1], 1, 1)
        if torch.is_grad_enabled():
            mean, variance, count = _statistics(viewed, ctx.group)
        mean, rstd = mean.reshape(channels), (variance.reshape(channels) + ctx.eps).rsqrt()
        products, sums = partial_sums(delta, viewed, mean, (3,), True)
        products = summed(products, (0,))
        sums = summed(widen(delta) if sums is None else sums, (0,))
        grad_input = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            both = AllReduceFunction.call(torch.cat((products, sums)), ctx.group)
            # input_gradient divides by the count of its own positions.
            both = both * ((viewed.numel() // viewed.shape[1]) / count)
            scale = None if weight is None else widen(weight).reshape(channels)
            grad_input = input_gradient(delta, viewed, mean, rstd, scale, both[:1], both[1:], _OVER)
            grad_input = laid_out(grad_input.reshape(input.shape), ctx.channels_last)
        if ctx.needs_input_grad[1]:
            grad_weight = (products * rstd).flatten().to(ctx.dtypes[0])
        if ctx.needs_input_grad[2]:
            grad_bias = sums.flatten().to(ctx.dtypes[1])
        return grad_input, grad_weight, grad_bias, None, None


def _viewed(input: Tensor) -> Tensor:
    """`[n, c, *]` as `[n, c, 1, s]`."""
    batch, channels, *space = input.shape
    return input.reshape(batch, channels, 1, math.prod(space))


def _statistics(input: Tensor, group: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance over the group, [1, c, 1, 1], and N [1]. A process may have no positions at all."""
    wide = widen(input)
    channels = input.shape[1]
    own = wide.new_full((1,), input.numel() // channels)
    sums = AllReduceFunction.call(torch.cat((wide.sum(_OVER), own)), group)
    mean, count = (sums[:-1] / sums[-1]).reshape(1, channels, 1, 1), sums[-1:]
    squares = AllReduceFunction.call((wide - mean).square().sum(_OVER), group)
    return mean, (squares / count).reshape(1, channels, 1, 1), count


def sync_batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    eps: float,
    momentum: float,
    process_group: Any = None,
) -> Tensor:
    """Batch normalisation over the batches of all processes of a group.

    Args:
        input: `[n, c, *]`; n may be 0 in some of the processes.
        weight: `[c]`, the scale.
        bias: `[c]`, the shift.
        running_mean: `[c]`, updated in place.
        running_var: `[c]`, likewise, of the unbiased variance.
        eps: added to the variance.
        momentum: how much of the new statistics goes into the running ones.
        process_group: of `torch.distributed`, the whole world if left out.

    Returns:
        The shape of `input`.
    """
    output, mean, variance, count = SyncBatchNormFunction.call(input, weight, bias, eps, process_group)
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((variance * (count / (count - 1))).to(running_var.dtype), momentum)
    return output


class SyncBatchNorm(HandwrittenBatchNorm, nn.SyncBatchNorm):
    """`torch.nn.SyncBatchNorm` with a hand-written backward."""

    def forward(self, input: Tensor) -> Tensor:
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if not (self.training and distributed):
            nn.SyncBatchNorm._check_input_dim(self, input)
            self._check_non_zero_input_channels(input)
            return HandwrittenBatchNorm.forward(self, input)
        self._check_input_dim(input)
        self._check_non_zero_input_channels(input)
        other = torch._C._get_privateuse1_backend_name()
        if input.device.type not in ("cuda", "hpu", "xpu", other):
            raise ValueError(f"SyncBatchNorm expected input tensor to be on GPU or XPU or {other}")
        group = self.process_group or torch.distributed.group.WORLD
        if torch.distributed.get_world_size(group) == 1:
            return HandwrittenBatchNorm.forward(self, input)
        momentum = self._counted()
        tracked = (self.running_mean, self.running_var) if self.track_running_stats else (None, None)
        return sync_batch_norm(input, self.weight, self.bias, *tracked, self.eps, momentum, group)

    @classmethod
    def convert_sync_batchnorm(cls, module: nn.Module, process_group: Any = None) -> nn.Module:
        """`torch.nn.SyncBatchNorm.convert_sync_batchnorm`, into hand-written ones."""
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(module, process_group)
        for each in converted.modules():
            if type(each) is nn.SyncBatchNorm:
                each.__class__ = cls
        return converted


def _samples() -> Iterable[Sample]:
    yield Sample(args=(2,), inputs=(randn(3, 2, 2, 2),))
    yield Sample(args=(3,), inputs=(randn(4, 3),), train=False, label="eval")


def _saved_bytes(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> int:
    (input,) = inputs
    return nbytes(input) + (2 * input.shape[1] + 1) * max(4, input.element_size())


SPECS = (
    LayerSpec(
        name="SyncBatchNorm",
        module=SyncBatchNorm,
        reference=nn.SyncBatchNorm,
        samples=_samples,
        saves="input, two numbers a channel",
        saved_bytes=_saved_bytes,
        summary="normalisation of channels over the batches of all processes",
    ),
)
