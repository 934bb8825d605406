"""BatchNorm: each channel is brought to mean 0 and variance 1 over the batch, then scaled and shifted.

    μ[c] = 1/N Σₙ x[n,c],   r[c] = (1/N Σₙ (x[n,c] - μ[c])² + ε)^(-1/2),   z[n,c] = (x[n,c] - μ[c]) r[c]
    y[n,c] = w[c] z[n,c] + b[c]                     n: the N positions of batch and space, c: channel

    ∂L/∂w[c] = Σₙ δ[n,c] z[n,c]                ∂L/∂b[c] = Σₙ δ[n,c]

In training μ and r depend on every x of the channel, with ∂z[m,c]/∂x[n,c] = r[c] ([m = n] - 1/N -
z[m,c] z[n,c] / N), hence

    ∂L/∂x[n,c] = w[c] r[c] (δ[n,c] - 1/N Σₘ δ[m,c] - z[n,c] 1/N Σₘ δ[m,c] z[m,c])

and, the two sums being ∂L/∂b and ∂L/∂w, this is one pass over x and δ once those are known. In
evaluation μ and r are the running statistics, constants: ∂L/∂x[n,c] = w[c] r[c] δ[n,c].

Saved: x, and μ and r, two numbers a channel. A backward that is itself differentiated computes them
again from x.
Source: Ioffe & Szegedy, "Batch normalization", 2015.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import _are_functorch_transforms_active

from bpkit.core.function import Function
from bpkit.core.fuse import formula
from bpkit.core.layout import channels_last, laid_out
from bpkit.core.module import Handwritten
from bpkit.core.precision import widen
from bpkit.core.spec import LayerSpec, Sample, nbytes, randn


@formula
def _training_gradients(
    grad_output: Tensor,
    input: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, ...]:
    """∂L/∂x, ∂L/∂w and ∂L/∂b, the last two [c], as far as they are needed (the first needs both sums)."""
    dims, count = _reduced(input), input.numel() // input.shape[1]
    delta = widen(grad_output)
    centred = widen(input) - _channels(mean, input)  #                             z / r
    sum_grad = delta.sum(dims) if needs[0] or needs[2] else None
    sum_grad_normalized = (delta * centred).sum(dims) * rstd if needs[0] or needs[1] else None
    if sum_grad is None or sum_grad_normalized is None or not needs[0]:
        return None, sum_grad_normalized, sum_grad
    scale = rstd if weight is None else rstd * widen(weight)
    slope = sum_grad_normalized * rstd / count  #                                  of z, in x - μ
    drift = torch.addcmul(_channels(sum_grad / count, input), centred, _channels(slope, input))
    gradient = (delta - drift) * _channels(scale, input)
    return gradient.to(input.dtype), sum_grad_normalized, sum_grad


def _reduced(input: Tensor) -> list[int]:
    return [axis for axis in range(input.dim()) if axis != 1]


def _channels(statistic: Tensor, input: Tensor) -> Tensor:
    """[c] made [1, c, 1, ...], to go with `input`."""
    return statistic.reshape(1, -1, *(1,) * (input.dim() - 2))


class BatchNormFunction(Function):
    """`(x [n, c, *], w, b, running_mean, running_var, training, eps) -> (y, μ, r, mean, var)`.

    The last two are the batch's mean and unbiased variance, [c], for the running statistics (empty
    where there are none): the Function itself changes nothing, so that it can be traced and mapped.
    """

    @staticmethod
    def forward(
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        training: bool,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        if training and running_mean is not None and running_var is not None:
            # With a momentum of 1 the new running statistics are the batch's own.
            zeros = torch.zeros_like(running_mean), torch.zeros_like(running_var)
            return torch.ops.aten._native_batch_norm_legit_functional(
                input, weight, bias, *zeros, True, 1.0, eps
            )
        if training:
            legit = torch.ops.aten._native_batch_norm_legit.no_stats
            output, mean, rstd = legit(input, weight, bias, True, 0.0, eps)
        else:
            assert running_mean is not None  # by _well_formed
            assert running_var is not None
            output = torch.batch_norm(input, weight, bias, running_mean, running_var, False, 0.0, eps, False)
            mean, rstd = running_mean.clone(), (running_var + eps).rsqrt()
        return output, mean, rstd, mean.new_empty(0), mean.new_empty(0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        input, weight, bias, _, _, ctx.training, ctx.eps = inputs
        _, mean, rstd, *batch = output
        ctx.mark_non_differentiable(mean, rstd, *batch)
        ctx.set_materialize_grads(False)
        ctx.channels_last = channels_last(input)
        ctx.dtypes = tuple(None if each is None else each.dtype for each in (weight, bias))
        reads_input = ctx.needs_input_grad[1] or (ctx.needs_input_grad[0] and ctx.training)
        ctx.save_for_backward(
            input if reads_input else None,
            mean if reads_input else None,
            rstd if ctx.needs_input_grad[0] or ctx.needs_input_grad[1] else None,
            weight if ctx.needs_input_grad[0] else None,
        )

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad_output is None:
            return (None,) * 7
        input, mean, rstd, weight = ctx.saved_tensors
        need = ctx.needs_input_grad
        grad_input: Any = None
        sum_grad: Any = None
        sum_grad_normalized: Any = None
        if ctx.training and input is not None and torch.is_grad_enabled():
            variance, mean = torch.var_mean(widen(input), _reduced(input), correction=0)
            rstd = (variance + ctx.eps).rsqrt()
        elif rstd is not None:
            mean, rstd = None if mean is None else widen(mean), widen(rstd)
        if input is not None:
            grad_input, sum_grad_normalized, sum_grad = _training_gradients(
                grad_output, input, mean, rstd, weight, (ctx.training and need[0], *need[1:3])
            )
        elif ctx.needs_input_grad[2]:
            sum_grad = widen(grad_output).sum(_reduced(grad_output))
        if ctx.needs_input_grad[0] and not ctx.training:
            scale = rstd if weight is None else rstd * widen(weight)
            grad_input = (widen(grad_output) * _channels(scale, grad_output)).to(grad_output.dtype)
        if grad_input is not None:
            grad_input = laid_out(grad_input, ctx.channels_last)
        grad_weight = sum_grad_normalized.to(ctx.dtypes[0]) if ctx.needs_input_grad[1] else None
        grad_bias = sum_grad.to(ctx.dtypes[1]) if ctx.needs_input_grad[2] else None
        return grad_input, grad_weight, grad_bias, None, None, None, None


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`torch.nn.functional.batch_norm` with a hand-written backward.

    Args:
        input: `[n, c]` or `[n, c, *]`.
        running_mean: `[c]`, updated in place in training; used instead of the batch's otherwise.
        running_var: `[c]`, likewise, of the unbiased variance.
        weight: `[c]`, the scale.
        bias: `[c]`, the shift.
        training: normalise by the batch.
        momentum: how much of the new statistics goes into the running ones.
        eps: added to the variance.

    Returns:
        The shape of `input`.

    Raises:
        ValueError: one value a channel in training, an eps that is not positive.
        RuntimeError: shapes that do not go together, in torch's words.
    """
    if not _well_formed(input, running_mean, running_var, weight, bias, training, eps):
        return nn.functional.batch_norm(
            input, running_mean, running_var, weight, bias, training, momentum, eps
        )
    output, _, _, mean, variance = BatchNormFunction.call(
        input, weight, bias, running_mean, running_var, training, eps
    )
    if training and running_mean is not None and running_var is not None:
        if _are_functorch_transforms_active():
            # A generated vmap rule maps every output, also for a weight alone; these depend on x only.
            variance, mean = torch.var_mean(widen(input.detach()), _reduced(input))
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_(variance.to(running_var.dtype), momentum)
    return output


def _well_formed(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    eps: float,
) -> bool:
    """Whether there are positions to normalise; for none torch has the answer, for the rest the error."""
    if input.dim() < 2 or input.numel() == 0 or eps < 0 or (eps == 0 and training):
        return False
    if (running_mean is None) != (running_var is None) or (running_mean is None and not training):
        return False
    channels = input.shape[1]
    each_channel = (running_mean, running_var, weight, bias)
    if any(each is not None and each.shape != (channels,) for each in each_channel):
        return False
    return not training or input.numel() > channels


class _BatchNorm(Handwritten, nn.modules.batchnorm._BatchNorm):
    """What the two modules share: which statistics a call uses, and how they move."""

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        tracks = self.running_mean is not None or self.running_var is not None
        momentum = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # the plain average over all batches
                momentum = 1.0 / float(self.num_batches_tracked)
        moves = not self.training or self.track_running_stats
        return batch_norm(
            input,
            self.running_mean if moves else None,
            self.running_var if moves else None,
            self.weight,
            self.bias,
            self.training or not tracks,
            momentum,
            self.eps,
        )


class BatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d` with a hand-written backward."""


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` with a hand-written backward."""


def _samples_1d() -> Iterable[Sample]:
    yield Sample(args=(3,), inputs=(randn(5, 3),))
    yield Sample(args=(2,), inputs=(randn(3, 2, 4),), label="with length")
    yield Sample(args=(3,), inputs=(randn(5, 3),), train=False, label="eval")
    yield Sample(args=(3,), kwargs={"affine": False}, inputs=(randn(4, 3),), label="not affine")
    untracked = {"track_running_stats": False}
    yield Sample(args=(2,), kwargs=untracked, inputs=(randn(4, 2),), label="untracked")


def _samples_2d() -> Iterable[Sample]:
    yield Sample(args=(2,), inputs=(randn(3, 2, 2, 3),))
    yield Sample(args=(2,), kwargs={"momentum": None}, inputs=(randn(2, 2, 2, 2),), label="average")
    yield Sample(args=(2,), inputs=(randn(2, 2, 3, 2),), train=False, label="eval")


def _saved_bytes(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> int:
    (input,) = inputs
    return nbytes(input) + 2 * input.shape[1] * max(4, input.element_size())


SPECS = tuple(
    LayerSpec(
        name=module.__name__,
        module=module,
        reference=reference,
        samples=samples,
        saves="input, two numbers a channel",
        saved_bytes=_saved_bytes,
        not_proven={
            "vmap": "it moves its running statistics in place, once under vmap and once a call in the "
            "loop that vmap is compared with; torch's own cannot be mapped either while it tracks them"
        },
        summary="normalisation of channels over the batch",
    )
    for module, reference, samples in (
        (BatchNorm1d, nn.BatchNorm1d, _samples_1d),
        (BatchNorm2d, nn.BatchNorm2d, _samples_2d),
    )
)
