"""NLLLoss: the log-likelihood of one class of C, from log-probabilities.

    l[n] = -w[t[n]] x[n,t[n]]                 n: position, c: class, t: the class index of a position
    ∂l[n]/∂x[n,c] = -w[c] [c = t[n]]

A mean divides by Σₙ w[t[n]] over the kept indices. An ignored index has l = 0 and no gradient.

Saved: the indices (torch keeps x as well, whose values no gradient depends on).
Source: Fisher, "On the mathematical foundations of theoretical statistics", 1922.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bpkit.core.function import Function
from bpkit.core.module import Handwritten
from bpkit.core.precision import widen
from bpkit.core.spec import LossSpec, Sample, nbytes, randn
from bpkit.losses.cross_entropy import class_axis, hot_cost
from bpkit.losses.reduction import NONE, code, refuse_gradient


class NLLFunction(Function):
    """`(x [n, c, *], t [n, *], w [c] | None, ignored, reduction) -> [] or [n, *]`."""

    autocast = {"cpu": "fp32", "cuda": "fp32"}

    @staticmethod
    def forward(input: Tensor, target: Tensor, weight: Tensor | None, ignored: int, reduction: int) -> Tensor:
        loss = torch._C._nn.nll_loss_nd(input, target, weight, reduction, ignored)  # type: ignore[arg-type]
        return loss.clone() if reduction == NONE else loss  # of positions torch returns a view

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, target, weight, ctx.ignored, ctx.reduction = inputs
        ctx.shape, ctx.dtype, ctx.axis = input.shape, input.dtype, class_axis(input)
        ctx.save_for_backward(target, weight)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        target, weight = ctx.saved_tensors
        delta = widen(grad_output).neg()
        index, _, hot = hot_cost(target, weight, ctx.ignored, delta, ctx.reduction)
        index, hot = index.unsqueeze(ctx.axis), hot.to(ctx.dtype).unsqueeze(ctx.axis)
        return hot.new_zeros(ctx.shape).scatter_(ctx.axis, index, hot), None, None, None, None


def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """`torch.nn.functional.nll_loss` with a hand-written backward.

    Args:
        input: log-probabilities, `[c]`, `[n, c]` or `[n, c, *]`.
        target: class indices, `[]`, `[n]` or `[n, *]`.
        weight: `[c]`, a factor for each class.
        size_average: deprecated, see `reduction`.
        ignore_index: the index that counts for nothing.
        reduce: deprecated, see `reduction`.
        reduction: `"none"`, `"mean"` or `"sum"`.

    Returns:
        A scalar, or the shape of `target` without a reduction.

    Raises:
        ValueError, RuntimeError, IndexError: shapes that do not go together, an index out of range, in
            torch's words.
    """
    reduced = code(reduction, size_average, reduce)
    refuse_gradient("nll_loss_forward" if input.dim() < 3 else "nll_loss2d_forward", "weight", weight)
    return NLLFunction.call(input, target, weight, ignore_index, reduced)


class NLLLoss(Handwritten, nn.NLLLoss):
    """`torch.nn.NLLLoss` with a hand-written backward."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return nll_loss(input, target, self.weight, None, self.ignore_index, None, self.reduction)


with warnings.catch_warnings():  # torch warns of a subclass as well
    warnings.simplefilter("ignore", FutureWarning)

    class NLLLoss2d(Handwritten, nn.NLLLoss2d):
        """`torch.nn.NLLLoss2d`, deprecated there, with a hand-written backward."""

        forward = NLLLoss.forward


def _samples() -> Iterable[Sample]:
    indices = torch.tensor([2, 0, 1, 2])
    weight = torch.tensor([0.5, 2.0, 1.5], dtype=torch.float64)
    yield Sample(inputs=(randn(4, 3).log_softmax(1), indices))
    settings = {"weight": weight, "ignore_index": 0, "reduction": "sum"}
    yield Sample(kwargs=settings, inputs=(randn(4, 3), indices), label="weight, ignored, sum")
    yield from _images()
    yield Sample(inputs=(randn(3), torch.tensor(1)), label="unbatched")


def _images() -> Iterable[Sample]:
    images = (randn(2, 3, 2, 2), torch.tensor([[[0, 2], [1, 1]], [[2, 2], [0, 1]]]))
    for reduction in ("mean", "none"):
        yield Sample(kwargs={"reduction": reduction}, inputs=images, label=f"images, {reduction}")


SPECS = tuple(
    LossSpec(
        name=name,
        module=module,
        reference=reference,
        samples=samples,
        saves="target",
        saved_bytes=lambda module, inputs, output: nbytes(inputs[1], *module.buffers()),
        aliases=aliases,
        summary="log-likelihood of a class, from log-probabilities",
    )
    for name, module, reference, samples, aliases in (
        ("nll", NLLLoss, nn.NLLLoss, _samples, ("NLLLoss", "nll_loss")),
        ("nll2d", NLLLoss2d, nn.NLLLoss2d, _images, ("NLLLoss2d",)),
    )
)
