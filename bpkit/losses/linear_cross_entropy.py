"""LinearCrossEntropyLoss: a linear layer and the cross entropy of its logits, which are never all there.

    z[n,c] = Σ_i x[n,i] W[c,i] + b[c],    l[n] and d[n,c] = ∂l[n]/∂z[n,c] of z as in `cross_entropy.py`
    ∂L/∂x[n,i] = Σ_c d[n,c] W[c,i]        ∂L/∂W[c,i] = Σ_n d[n,c] x[n,i]        ∂L/∂b[c] = Σ_n d[n,c]

Rows are taken some at a time: of a block's logits come its losses and d, and from these its share of the
three gradients, before the next block's logits take their place. So the forward forms the gradients
for δ = 1, where a mean or a sum is asked for, and the backward scales them: three matrix products in
all. Where that would keep more than the logits are (few rows), where there is no reduction, for a second
derivative and under `torch.func`, the backward forms each block's logits again: four products.

Saved: x and the gradients, or x alone (torch keeps all ln p[n,c]).
Source: Wijmans et al., "Cut your losses in large-vocabulary language models", 2025; Hsu et al.,
"Liger Kernel", 2024.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bpkit import ops
from bpkit.core.function import Function
from bpkit.core.module import Handwritten, adopt
from bpkit.core.precision import widen
from bpkit.core.spec import LossSpec, Sample, nbytes, randn
from bpkit.core.transforms import unseen
from bpkit.layers.linear import Linear
from bpkit.losses.cross_entropy import (
    hot_cost,
    index_gradient,
    kept_weight,
    soft_cost,
    soft_gradient,
    soft_target_gradient,
)
from bpkit.losses.linear_cross_entropy_arguments import require_well_formed
from bpkit.losses.linear_sums import LinearSums
from bpkit.losses.reduction import MEAN, NONE, code, refuse_gradient

# Logits of a block: 32 MiB of float32, 256 rows of 32,000 classes.
BLOCK = 1 << 23


class LinearCrossEntropyFunction(Function):
    """`(x [n, i], W [c *, i], b [c *] | None, t [n, *] or [n, c, *], w [c] | None, settings, formed)`.

    Gives the loss, `[]` or `[n, *]`, and after it the gradients that are `formed` for backward.
    """

    @staticmethod
    def forward(
        input: Tensor,
        linear_weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        weight: Tensor | None,
        settings: tuple[Any, ...],
        formed: tuple[bool, ...],
    ) -> Any:
        _, ignored, smoothing, reduction, _, dtype = settings
        one = widen(input.new_ones(()))
        count = _count(input, target, weight, settings, one)
        sums = LinearSums(input, linear_weight, bias, formed)
        losses = []
        for x, t, logits in _blocks(input, linear_weight, bias, target, settings):
            logits = logits.log_softmax(1)
            losses.append(_losses(logits, t, weight, ignored, smoothing))
            if any(formed):
                sums.add(x, _slope(logits.exp_(), t, weight, ignored, smoothing, one))
        rows = torch.cat(losses)
        loss = rows if reduction == NONE else rows.sum() / count
        return (loss.to(dtype), *sums.gradients()) if any(formed) else loss.to(dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ctx.settings, ctx.formed = inputs
        gradients = output[1:] if any(ctx.formed) else ()
        if gradients:
            ctx.mark_non_differentiable(*gradients)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *gradients)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        input, linear_weight, bias, target, weight, *gradients = ctx.saved_tensors
        if grad_output is None:
            return (None,) * 7
        scale = widen(grad_output)
        kept = _count(input, target, weight, ctx.settings, scale)
        scale = scale / kept
        if gradients and not torch.is_grad_enabled():
            # Not before: in half precision p/m, or δ of a scaled loss, may be beyond what numbers there are.
            scale = torch.where(kept == 0, 0, scale)
            scaled = iter([(widen(each) * scale).to(input.dtype) for each in gradients])
            return (*(next(scaled) if each else None for each in ctx.formed), None, None, None, None)
        _, ignored, smoothing, reduction, rows, _ = ctx.settings
        if target.is_floating_point() and reduction == NONE:
            scale = scale.unsqueeze(1)
        scales = scale.split(rows) if reduction == NONE else None
        sums = LinearSums(input, linear_weight, bias, ctx.needs_input_grad[:3])
        targets = []
        for block, (x, t, logits) in enumerate(_blocks(input, linear_weight, bias, target, ctx.settings)):
            own = scale if scales is None else scales[block]
            if any(ctx.needs_input_grad[:3]):
                sums.add(x, _slope(logits.softmax(1), t, weight, ignored, smoothing, own))
            if ctx.needs_input_grad[3]:
                targets.append(soft_target_gradient(logits, weight, smoothing, own).to(target.dtype))
        found = iter([each.to(input.dtype) for each in sums.gradients()])
        return (
            *(next(found) if each else None for each in ctx.needs_input_grad[:3]),
            torch.cat(targets) if targets else None,
            None,
            None,
            None,
        )


def _blocks(
    input: Tensor, linear_weight: Tensor, bias: Tensor | None, target: Tensor, settings: tuple[Any, ...]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Some rows, their targets and their logits, widened.   [r, i], [r, *] or [r, c, *], [r, c, *]"""
    shape, *_, rows, _ = settings
    for x, t in zip(input.split(rows), target.split(rows), strict=True):
        yield x, t, widen(F.linear(x, linear_weight, bias).reshape(len(x), *shape))


def _losses(logits: Tensor, target: Tensor, weight: Tensor | None, ignored: int, smoothing: float) -> Tensor:
    """l[n] from ln p.   [r, *]"""
    weight = None if weight is None else weight.to(logits.dtype)
    if target.is_floating_point():
        return -(logits * soft_cost(target, weight, smoothing, 1)).sum(1)
    losses = torch._C._nn.nll_loss_nd(logits, target, weight, NONE, ignored)  # type: ignore[arg-type]
    if not smoothing:
        return losses
    spread = logits if weight is None else logits * weight.reshape(-1, *(1,) * (logits.dim() - 2))
    spread = torch.where(target == ignored, 0, -spread.sum(1))
    return (1 - smoothing) * losses + smoothing / logits.shape[1] * spread


def _slope(
    chances: Tensor, target: Tensor, weight: Tensor | None, ignored: int, smoothing: float, scale: Tensor
) -> Tensor:
    """The slope d from p and δ/m.   [r, c, *]"""
    if target.is_floating_point():
        return soft_gradient(chances, target, weight, smoothing, scale)
    return index_gradient(chances, hot_cost(target, weight, ignored, scale, NONE), weight, smoothing)


def _count(
    input: Tensor, target: Tensor, weight: Tensor | None, settings: tuple[Any, ...], like: Tensor
) -> Tensor:
    """m: what a mean divides by, else 1.   [] in `like`'s dtype"""
    shape, ignored, _, reduction, *_ = settings
    if reduction != MEAN:
        return like.new_ones(())
    if target.is_floating_point():
        return like.new_full((), input.shape[0] * torch.Size(shape[1:]).numel())
    return kept_weight(target, weight, ignored, like.dtype)


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: Any = None,
) -> Tensor:
    """`torch.nn.functional.linear_cross_entropy` with a hand-written backward, always in blocks of rows.

    Args:
        input: `[i]` or `[n, i]`.
        linear_weight: `[c, i]` or `[c, *, i]`.
        target: class indices, `[]`, `[n]` or `[n, *]`; or probabilities, of the logits' shape.
        linear_bias: `[c]` or `[c, *]`.
        weight: `[c]`, a factor for each class.
        reduction: `"none"`, `"mean"` or `"sum"`.
        ignore_index: the index that counts for nothing.
        label_smoothing: the share of every target that is spread evenly over the classes.
        options: torch's; its number of rows is taken here too. What torch's own chunks do not support,
            second derivatives, a second backward and smoothing among it, is supported.

    Raises:
        RuntimeError, IndexError, ValueError: arguments that do not go together, in torch's words.
    """
    reduced = code(reduction, None, None)
    refuse_gradient("nll_loss_forward", "weight", weight)
    require_well_formed(
        input, linear_weight, target, linear_bias, weight, reduction, ignore_index, label_smoothing
    )
    single = input.dim() == 1
    if single:
        input, target = input.unsqueeze(0), target.unsqueeze(0)
    classes, features = linear_weight.shape[0], linear_weight.shape[-1]
    shape = (classes, *linear_weight.shape[1:-1])
    dtype = torch.result_type(input, target) if target.is_floating_point() else input.dtype
    if torch.is_autocast_enabled(input.device.type):  # a linear layer's product, and a loss in float32
        lower = torch.get_autocast_dtype(input.device.type)
        input, linear_weight = ops.to(input, lower), ops.to(linear_weight, lower)
        linear_bias = None if linear_bias is None else ops.to(linear_bias, lower)
        dtype = torch.float32
    flat = linear_weight.reshape(-1, features)
    bias = None if linear_bias is None else linear_bias.reshape(-1)
    rows = max(1, BLOCK // max(1, len(flat)))
    if options is not None:
        rows = options._adjust(
            num_batches=len(input),
            in_features=features,
            num_classes=classes,
            dtype=input.dtype,
            device=input.device,
        ).batch_chunk_size
    settings = (shape, -100 if ignore_index is None else ignore_index, label_smoothing, reduced, rows, dtype)
    formed = _formed(input, flat, bias, target, reduced)
    result = LinearCrossEntropyFunction.call(input, flat, bias, target, weight, settings, formed)
    loss: Tensor = result[0] if any(formed) else result
    return loss.squeeze(0) if single and reduced == NONE else loss


def _formed(
    input: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, reduction: int
) -> tuple[bool, ...]:
    """Which of the three gradients the forward is to form."""
    wanted = tuple(each is not None and each.requires_grad for each in (input, weight, bias))
    kept = sum(each.numel() for each, own in zip((input, weight), wanted, strict=False) if own)
    if (
        reduction == NONE
        or kept > len(input) * len(weight)
        or target.requires_grad
        or not torch.is_grad_enabled()
        or unseen()
    ):
        return (False, False, False)
    return wanted


class LinearCrossEntropyLoss(Handwritten, nn.LinearCrossEntropyLoss):
    """`torch.nn.LinearCrossEntropyLoss` with a hand-written backward."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        adopt(self, {nn.Linear: Linear})

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        shape = (self.num_classes, *self.out_features)
        bias = self.linear.bias
        return linear_cross_entropy(
            input,
            self.linear.weight.reshape(*shape, self.linear.in_features),
            target,
            linear_bias=None if bias is None else bias.reshape(shape),
            weight=self.weight,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            options=self.options,
        )


def _samples() -> Iterable[Sample]:
    indices = torch.tensor([2, 0, 1, 2, 1])
    weight = torch.tensor([0.5, 2.0, 1.5], dtype=torch.float64)
    yield Sample(args=(2, 3), inputs=(randn(5, 2), indices))
    many = (randn(24, 2), torch.arange(24) % 6)
    yield Sample(args=(2, 6), kwargs={"bias": True}, inputs=many, label="gradients formed in the forward")
    options = nn.LinearCrossEntropyOptions(batch_chunk_size=7, chunking_method=None)
    settings = {"options": options, "label_smoothing": 0.2, "ignore_index": 1, "reduction": "sum"}
    yield Sample(args=(2, 6), kwargs=settings, inputs=many, label="blocks, smoothing, ignored, sum")
    settings = {
        "options": options,
        "label_smoothing": 0.1,
        "weight": weight,
        "bias": True,
        "reduction": "none",
    }
    yield Sample(args=(2, 3), kwargs=settings, inputs=(randn(24, 2), many[1] % 3), label="weight, none")
    soft = (randn(5, 2), torch.softmax(randn(5, 3, 2, seed=1), 1))
    yield Sample(args=(2, 3), kwargs={"out_features": (2,)}, inputs=soft, label="positions, probabilities")


def _saved_bytes(module: Any, inputs: tuple[Any, ...], output: Tensor) -> int:
    """The arguments, and gradients no larger than the logits."""
    input, target = inputs
    logits = len(input) * module.linear.out_features
    bias = nbytes(module.linear.bias)
    return nbytes(input, target, module.weight) + logits * input.element_size() + bias


SPECS = (
    LossSpec(
        name="linear_cross_entropy",
        module=LinearCrossEntropyLoss,
        reference=nn.LinearCrossEntropyLoss,
        samples=_samples,
        saves="input, target, and the gradients where they are smaller than the logits",
        saved_bytes=_saved_bytes,
        aliases=("LinearCrossEntropyLoss",),
        summary="log-likelihood of a class, without keeping logits",
    ),
)
