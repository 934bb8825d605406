"""InstanceNorm: each channel of each sample is brought to mean 0 and variance 1 over space.

    y[n,c,s] = w[c] z[n,c,s] + b[c],   z[n,c,s] = (x[n,c,s] - μ[n,c]) r[n,c]   n: sample, c: channel, s: space

It is GroupNorm with a group for each channel (`groupnorm.py`, which runs here), and like BatchNorm it may
keep running statistics, the average over the samples of each one's own. By those, which are constants, it
is BatchNorm in evaluation (`batchnorm.py`).

Saved: x, and μ and r, two numbers a channel of a sample.
Source: Ulyanov, Vedaldi & Lempitsky, "Instance normalization", 2016.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bpkit.core.module import Handwritten
from bpkit.core.refusal import refuse_unless_empty
from bpkit.core.spec import LayerSpec, Sample, nbytes, randn
from bpkit.layers.batchnorm import batch_norm, of_nothing
from bpkit.layers.groupnorm import GroupNormFunction
from bpkit.layers.lazy import lazy_spec


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`torch.nn.functional.instance_norm` with a hand-written backward.

    Args:
        input: `[n, c, *]`.
        running_mean: `[c]`, updated in place with the samples' average; what is subtracted without
            `use_input_stats`.
        running_var: `[c]`, likewise, of the unbiased variance.
        weight: `[c]`, the scale.
        bias: `[c]`, the shift.
        use_input_stats: normalise by the input's own statistics.
        momentum: how much of the new statistics goes into the running ones.
        eps: added to the variance.

    Returns:
        `[n, c, *]`.

    Raises:
        ValueError: one position of space, in torch's words.
        RuntimeError: shapes that do not go together, likewise.
    """
    if not _well_formed(input, running_mean, running_var, weight, bias, use_input_stats, eps):
        given = (running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
        refuse_unless_empty(nn.functional.instance_norm, input, *given)
        return of_nothing(input, weight, bias)
    if not use_input_stats:
        return batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    if running_mean is not None and running_var is not None:
        with torch.no_grad():  # torch's own moves them, for which it needs its forward again
            nn.functional.instance_norm(
                input.detach(), running_mean, running_var, None, None, True, momentum, eps
            )
    return GroupNormFunction.call(input, weight, bias, input.shape[1], eps)[0]


def _well_formed(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    own: bool,
    eps: float,
) -> bool:
    if input.dim() < 2 or input.numel() == 0 or not input.is_floating_point():
        return False
    if (running_mean is None) != (running_var is None) or (running_mean is None and not own):
        return False
    each_channel = (running_mean, running_var, weight, bias)
    if any(each is not None and each.shape != input.shape[1:2] for each in each_channel):
        return False
    return not own or input[0, 0].numel() > 1


class HandwrittenInstanceNorm(Handwritten, nn.modules.instancenorm._InstanceNorm):
    """What the three modules share."""

    def _apply_instance_norm(self, input: Tensor) -> Tensor:
        return instance_norm(
            input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training or not self.track_running_stats,
            self.momentum if self.momentum is not None else 0.0,
            self.eps,
        )

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input)  # torch's, which sees to inputs without a batch


class InstanceNorm1d(HandwrittenInstanceNorm, nn.InstanceNorm1d):
    """`torch.nn.InstanceNorm1d` with a hand-written backward."""


class InstanceNorm2d(HandwrittenInstanceNorm, nn.InstanceNorm2d):
    """`torch.nn.InstanceNorm2d` with a hand-written backward."""


class InstanceNorm3d(HandwrittenInstanceNorm, nn.InstanceNorm3d):
    """`torch.nn.InstanceNorm3d` with a hand-written backward."""


class LazyInstanceNorm1d(nn.LazyInstanceNorm1d, InstanceNorm1d):
    """`torch.nn.LazyInstanceNorm1d`, which becomes a hand-written `InstanceNorm1d` on its first call."""

    cls_to_become = InstanceNorm1d


class LazyInstanceNorm2d(nn.LazyInstanceNorm2d, InstanceNorm2d):
    """`torch.nn.LazyInstanceNorm2d`, which becomes a hand-written `InstanceNorm2d` on its first call."""

    cls_to_become = InstanceNorm2d


class LazyInstanceNorm3d(nn.LazyInstanceNorm3d, InstanceNorm3d):
    """`torch.nn.LazyInstanceNorm3d`, which becomes a hand-written `InstanceNorm3d` on its first call."""

    cls_to_become = InstanceNorm3d


def _samples(*space: int) -> Iterable[Sample]:
    yield Sample(args=(2,), inputs=(randn(3, 2, *space),))
    yield Sample(args=(2,), kwargs={"affine": True}, inputs=(randn(2, 2, *space),), label="affine")
    tracked = {"affine": True, "track_running_stats": True}
    yield Sample(args=(2,), kwargs=tracked, inputs=(randn(2, 2, *space),), train=False, label="eval")


def _saved_bytes(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> int:
    (input,) = inputs
    return nbytes(input) + 2 * input.shape[0] * input.shape[1] * max(4, input.element_size())


_PLAIN = tuple(
    LayerSpec(
        name=module.__name__,
        module=module,
        reference=reference,
        samples=partial(_samples, *space),
        saves="input, two numbers a channel of a sample",
        saved_bytes=_saved_bytes,
        summary="normalisation of channels over space",
    )
    for module, reference, space in (
        (InstanceNorm1d, nn.InstanceNorm1d, (5,)),
        (InstanceNorm2d, nn.InstanceNorm2d, (2, 3)),
        (InstanceNorm3d, nn.InstanceNorm3d, (2, 1, 3)),
    )
)
_LAZY = (LazyInstanceNorm1d, LazyInstanceNorm2d, LazyInstanceNorm3d)
SPECS = _PLAIN + tuple(lazy_spec(module, plain) for module, plain in zip(_LAZY, _PLAIN, strict=True))
