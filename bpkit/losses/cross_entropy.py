"""CrossEntropyLoss: the log-likelihood of one class of C, from logits.

    p[n,c] = exp(x[n,c] - m[n]) / S[n],   m[n] = max_c x[n,c],   S[n] = Σ_c exp(x[n,c] - m[n])
    l[n] = - Σ_c q[n,c] w[c] ln p[n,c],   q[n,c] = (1 - ε) t[n,c] + ε/C             n: position, c: class

t[n,·] is a distribution, or one-hot for a class index; ε is the label smoothing, w the class weights.
Since ∂ ln p[n,k]/∂x[n,c] = [k = c] - p[n,c], with W[n] = Σ_c q[n,c] w[c]:

    ∂l[n]/∂x[n,c] = W[n] p[n,c] - q[n,c] w[c]
    ∂l[n]/∂t[n,c] = -(1 - ε) w[c] ln p[n,c]

A mean divides by Σₙ w[t[n]] over the kept indices, or by the number of positions for distributions.
An ignored index has l = 0 and no gradient.

Saved: the logits (torch keeps every ln p[n,c] as well). p is computed again from them, in one kernel;
by m and ln S, kept from the forward, it took three (64 x 128: 12 against 20 µs).
Source: Bridle, 1990; Szegedy et al., "Rethinking the Inception architecture", 2016, sec. 7 (smoothing).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bpkit.core.function import Function
from bpkit.core.module import Handwritten
from bpkit.core.precision import widen
from bpkit.core.spec import LossSpec, Sample, nbytes, randn
from bpkit.losses.reduction import MEAN, NONE, code, refuse_gradient


class CrossEntropyFunction(Function):
    """`(x [n, c, *], t [n, *] indices, w [c] | None, ignored, ε, reduction) -> [] or [n, *]`."""

    autocast = {"cpu": "fp32", "cuda": "fp32"}

    @staticmethod
    def forward(
        input: Tensor, target: Tensor, weight: Tensor | None, ignored: int, smoothing: float, reduction: int
    ) -> Tensor:
        loss = _twin(input, target, weight, reduction, ignored, smoothing)
        return loss.clone() if reduction == NONE else loss  # of positions torch returns a view

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, target, weight, ctx.ignored, ctx.smoothing, ctx.reduction = inputs
        ctx.save_for_backward(input, target, weight)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        input, target, weight = ctx.saved_tensors
        chances = widen(input).softmax(class_axis(input))
        hot = hot_cost(target, weight, ctx.ignored, widen(grad_output), ctx.reduction)
        gradient = index_gradient(chances, hot, weight, ctx.smoothing)
        return gradient.to(input.dtype), None, None, None, None, None


def kept_weight(target: Tensor, weight: Tensor | None, ignored: int, dtype: torch.dtype) -> Tensor:
    """Σₙ w[t[n]] over the indices that are not ignored: what a mean divides by."""
    kept = target != ignored
    if weight is None:
        return kept.sum().to(dtype)
    return (weight.to(dtype)[torch.where(kept, target, 0).long()] * kept).sum()


Hot = tuple[Tensor, Tensor, Tensor]


def hot_cost(target: Tensor, weight: Tensor | None, ignored: int, delta: Tensor, reduction: int) -> Hot:
    """The class of each position, δ/m there (0 where it is ignored), and that times w[t].   [n, *] each.

    0 also where nothing is kept and the mean divided by 0.
    """
    kept = target != ignored
    index = torch.where(kept, target, 0).long()
    cost = None if weight is None else weight.to(delta.dtype)[index]
    if reduction == MEAN:  # as `kept_weight`
        delta = delta / (kept.sum() if cost is None else (cost * kept).sum())
    scale = torch.where(kept, delta, 0)
    return index, scale, scale if cost is None else scale * cost


def index_gradient(chances: Tensor, hot_cost: Hot, weight: Tensor | None, smoothing: float) -> Tensor:
    """∂L/∂x for class indices, from p and `hot_cost`.   [n, c, *]"""
    axis = class_axis(chances)
    index, scale, hot = (each.unsqueeze(axis) for each in hot_cost)
    classes = chances.shape[axis]
    rows = hot = hot * (1 - smoothing)
    if smoothing:
        spread = scale * (smoothing / classes)
        rows = rows + spread * (classes if weight is None else weight.sum())
    gradient = chances * rows
    if smoothing:
        gradient = gradient - (spread if weight is None else spread * _along(weight, chances, axis))
    return gradient.scatter_add_(axis, index, -hot)


def soft_gradient(
    chances: Tensor, target: Tensor, weight: Tensor | None, smoothing: float, scale: Tensor
) -> Tensor:
    """∂L/∂x for probabilities, from p; `scale` is δ/m, `[]` or `[n, 1, *]`.   [n, c, *]"""
    axis = class_axis(chances)
    cost = soft_cost(target, weight, smoothing, axis)
    return chances * (scale * cost.sum(axis, keepdim=True)) - scale * cost


def soft_target_gradient(logits: Tensor, weight: Tensor | None, smoothing: float, scale: Tensor) -> Tensor:
    """∂L/∂t for probabilities.   [n, c, *]"""
    axis = class_axis(logits)
    gradient = logits.log_softmax(axis) * (scale * (smoothing - 1))
    return gradient if weight is None else gradient * _along(weight, logits, axis)


class SoftCrossEntropyFunction(Function):
    """`(x [n, c, *], t [n, c, *] probabilities, w [c] | None, ε, reduction) -> [] or [n, *]`."""

    autocast = {"cpu": "fp32", "cuda": "fp32"}

    @staticmethod
    def forward(
        input: Tensor, target: Tensor, weight: Tensor | None, smoothing: float, reduction: int
    ) -> Tensor:
        return _twin(input, target, weight, reduction, -100, smoothing)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, target, weight, ctx.smoothing, ctx.reduction = inputs
        ctx.save_for_backward(input, target, weight)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        input, target, weight = ctx.saved_tensors
        axis, scale = class_axis(input), widen(grad_output)
        if ctx.reduction == MEAN:
            scale = scale / (input.numel() // input.shape[axis])
        elif ctx.reduction == NONE:
            scale = scale.unsqueeze(axis)
        grad_input = grad_target = None
        if ctx.needs_input_grad[0]:
            chances = widen(input).softmax(axis)
            grad_input = soft_gradient(chances, target, weight, ctx.smoothing, scale).to(input.dtype)
        if ctx.needs_input_grad[1]:
            grad_target = soft_target_gradient(widen(input), weight, ctx.smoothing, scale).to(target.dtype)
        return grad_input, grad_target, None, None, None


def class_axis(input: Tensor) -> int:
    """The axis of the classes: the second, or of a single position the only one."""
    return 0 if input.dim() == 1 else 1


def _along(weight: Tensor, input: Tensor, axis: int) -> Tensor:
    """[c] shaped to go with `input`."""
    return weight.reshape(-1, *(1,) * (input.dim() - axis - 1))


def soft_cost(target: Tensor, weight: Tensor | None, smoothing: float, axis: int) -> Tensor:
    """Q w."""
    target = widen(target)
    if smoothing:
        target = target * (1 - smoothing) + smoothing / target.shape[axis]
    return target if weight is None else target * _along(weight, target, axis)


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """`torch.nn.functional.cross_entropy` with a hand-written backward.

    Args:
        input: logits, `[c]`, `[n, c]` or `[n, c, *]`.
        target: class indices, `[]`, `[n]` or `[n, *]`; or probabilities, the shape of `input`.
        weight: `[c]`, a factor for each class.
        size_average: deprecated, see `reduction`.
        ignore_index: the index that counts for nothing.
        reduce: deprecated, see `reduction`.
        reduction: `"none"`, `"mean"` or `"sum"`.
        label_smoothing: the share of every target that is spread evenly over the classes.

    Returns:
        A scalar, or the shape of `input` without its classes.

    Raises:
        ValueError, RuntimeError, IndexError: shapes that do not go together, an index out of range, a
            smoothing outside [0, 1], in torch's words.
    """
    reduced = code(reduction, size_average, reduce)
    refuse_gradient("nll_loss_forward", "weight", weight)
    if not _well_formed(input, target, weight, ignore_index, label_smoothing):
        return _twin(input, target, weight, reduced, ignore_index, label_smoothing)
    if target.is_floating_point():
        return SoftCrossEntropyFunction.call(input, target, weight, label_smoothing, reduced)
    return CrossEntropyFunction.call(input, target, weight, ignore_index, label_smoothing, reduced)


def _twin(input: Tensor, target: Tensor, weight: Tensor | None, *rest: Any) -> Tensor:
    return torch._C._nn.cross_entropy_loss(input, target, weight, *rest)


def _well_formed(
    input: Tensor, target: Tensor, weight: Tensor | None, ignored: int, smoothing: float
) -> bool:
    """Whether the arguments go together; for those that do not, torch has the error."""
    if not (input.dim() >= 1 and input.is_floating_point() and 0.0 <= smoothing <= 1.0):
        return False
    if ignored >= 0 if target.is_floating_point() else target.dtype not in (torch.int64, torch.uint8):
        return False
    axis = class_axis(input)
    classes = input.shape[axis]
    if target.is_floating_point():
        shape = input.shape
    else:
        shape = torch.Size(size for each, size in enumerate(input.shape) if each != axis)
    return target.shape == shape and (weight is None or tuple(weight.shape) == (classes,))


class CrossEntropyLoss(Handwritten, nn.CrossEntropyLoss):
    """`torch.nn.CrossEntropyLoss` with a hand-written backward."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(
            input,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )


def _samples() -> Iterable[Sample]:
    indices = torch.tensor([2, 0, 1, 2])
    weight = torch.tensor([0.5, 2.0, 1.5], dtype=torch.float64)
    yield Sample(inputs=(randn(4, 3), indices))
    settings = {"weight": weight, "ignore_index": 0, "label_smoothing": 0.2}
    yield Sample(kwargs=settings, inputs=(randn(4, 3), indices), label="weight, ignored, smoothing")
    spatial = (randn(2, 3, 2), torch.tensor([[0, 2], [1, 1]]))
    yield Sample(kwargs={"reduction": "none"}, inputs=spatial, label="positions, none")
    soft = (randn(4, 3), torch.softmax(randn(4, 3, seed=1), 1))
    settings = {"weight": weight, "label_smoothing": 0.1, "reduction": "sum"}
    yield Sample(kwargs=settings, inputs=soft, label="probabilities, sum")
    yield Sample(inputs=(randn(3), torch.tensor(1)), label="unbatched")


def _saved_bytes(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> int:
    input, target = inputs
    return nbytes(input, target, *module.buffers())


SPECS = (
    LossSpec(
        name="cross_entropy",
        module=CrossEntropyLoss,
        reference=nn.CrossEntropyLoss,
        samples=_samples,
        saves="logits, target",
        saved_bytes=_saved_bytes,
        aliases=("CrossEntropyLoss",),
        summary="log-likelihood of a class",
    ),
)
