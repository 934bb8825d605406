"""BatchNorm: each channel is brought to mean 0 and variance 1 over the batch, then scaled and shifted.

    y[n,c] = w[c] z[n,c] + b[c],   z[n,c] = (x[n,c] - μ[c]) r[c] n: N positions of batch and space, c: channel

In training the derivation is `normalization.py`'s, with a statistic and a weight for each c:

    ∂L/∂x[n,c] = w[c] r[c] (δ[n,c] - 1/N Σₘ δ[m,c] - z[n,c] 1/N Σₘ δ[m,c] z[m,c])

and, the two sums being ∂L/∂b and ∂L/∂w, this is one pass over x and δ once those are known. In
evaluation μ and r are the running statistics, constants: ∂L/∂x[n,c] = w[c] r[c] δ[n,c].

Saved: x, and μ and r, two numbers a channel.
Source: Ioffe & Szegedy, "Batch normalization", 2015.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import _are_functorch_transforms_active

from bpkit import ops
from bpkit.core.module import Handwritten
from bpkit.core.refusal import refuse_unless_empty
from bpkit.core.spec import LayerSpec, Sample, nbytes, randn
from bpkit.layers.lazy import lazy_spec
from bpkit.layers.normalization import Normalization, in_blocks, keep


class BatchNormFunction(Normalization):
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
        input, training, eps = inputs[0], inputs[5], inputs[6]
        _, mean, rstd, *batch = output
        ctx.mark_non_differentiable(mean, rstd, *batch)
        batches, channels, *space = input.shape
        positions = math.prod(space)
        if positions == 1:
            view, over, each = (*in_blocks(batches), channels, 1), (0, 1, 3), (1, 1, channels, 1)
        else:
            view, over, each = (batches, channels, 1, positions), (0, 2, 3), (1, channels, 1, 1)
        keep(ctx, inputs, mean, rstd, view, over if training else (), eps, each, each)


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
        given = (running_mean, running_var, weight, bias, training, momentum, eps)
        refuse_unless_empty(nn.functional.batch_norm, input, *given)
        return of_nothing(input, weight, bias)
    output, _, _, mean, variance = BatchNormFunction.call(
        input, weight, bias, running_mean, running_var, training, eps
    )
    if training and running_mean is not None and running_var is not None:
        with torch.no_grad():
            if (
                _are_functorch_transforms_active()
            ):  # where only torch's kernel may write to what a transform captures
                nn.functional.batch_norm(
                    input.detach(), running_mean, running_var, None, None, True, momentum, eps
                )
                return output
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_(variance.to(running_var.dtype), momentum)
    return output


def of_nothing(input: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """An empty batch: weight and bias get zeros, not None, from it."""
    output = ops.clone(input)
    if weight is not None:
        output = ops.mul(output, weight[0])
    return output if bias is None else ops.add(output, bias[0])


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


class HandwrittenBatchNorm(Handwritten, nn.modules.batchnorm._BatchNorm):
    """What the two modules share: which statistics a call uses, and how they move."""

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        tracks = self.running_mean is not None or self.running_var is not None
        moves = not self.training or self.track_running_stats
        return batch_norm(
            input,
            self.running_mean if moves else None,
            self.running_var if moves else None,
            self.weight,
            self.bias,
            self.training or not tracks,
            self._counted(),
            self.eps,
        )

    def _counted(self) -> float:
        """How much of this batch goes into the running statistics; counts the batch."""
        momentum = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # the plain average over all batches
                momentum = 1.0 / float(self.num_batches_tracked)
        return momentum


class BatchNorm1d(HandwrittenBatchNorm, nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d` with a hand-written backward."""


class BatchNorm2d(HandwrittenBatchNorm, nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` with a hand-written backward."""


class BatchNorm3d(HandwrittenBatchNorm, nn.BatchNorm3d):
    """`torch.nn.BatchNorm3d` with a hand-written backward."""


class LazyBatchNorm1d(nn.LazyBatchNorm1d, BatchNorm1d):
    """`torch.nn.LazyBatchNorm1d`, which becomes a hand-written `BatchNorm1d` on its first call."""

    cls_to_become = BatchNorm1d


class LazyBatchNorm2d(nn.LazyBatchNorm2d, BatchNorm2d):
    """`torch.nn.LazyBatchNorm2d`, which becomes a hand-written `BatchNorm2d` on its first call."""

    cls_to_become = BatchNorm2d


class LazyBatchNorm3d(nn.LazyBatchNorm3d, BatchNorm3d):
    """`torch.nn.LazyBatchNorm3d`, which becomes a hand-written `BatchNorm3d` on its first call."""

    cls_to_become = BatchNorm3d


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


def _samples_3d() -> Iterable[Sample]:
    yield Sample(args=(2,), inputs=(randn(2, 2, 2, 1, 3),))
    yield Sample(args=(2,), kwargs={"bias": False}, inputs=(randn(2, 2, 1, 2, 2),), label="no bias")
    yield Sample(args=(2,), inputs=(randn(2, 2, 2, 2, 1),), train=False, label="eval")


def _saved_bytes(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> int:
    (input,) = inputs
    return nbytes(input) + 2 * input.shape[1] * max(4, input.element_size())


_PLAIN = tuple(
    LayerSpec(
        name=module.__name__,
        module=module,
        reference=reference,
        samples=samples,
        saves="input, two numbers a channel",
        saved_bytes=_saved_bytes,
        summary="normalisation of channels over the batch",
    )
    for module, reference, samples in (
        (BatchNorm1d, nn.BatchNorm1d, _samples_1d),
        (BatchNorm2d, nn.BatchNorm2d, _samples_2d),
        (BatchNorm3d, nn.BatchNorm3d, _samples_3d),
    )
)
_LAZY = (LazyBatchNorm1d, LazyBatchNorm2d, LazyBatchNorm3d)
SPECS = _PLAIN + tuple(lazy_spec(module, plain) for module, plain in zip(_LAZY, _PLAIN, strict=True))
