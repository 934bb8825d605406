"""How far apart two tensors are, and the sentence that says so.

The relative error of a tensor is max|a-b| / max|b|: an element that is nearly zero says nothing about a
formula. A tensor is taken over its regions apart as well, so that large values cannot hide wrong small
ones: a gradient that is wrong where |input| > 3 alone is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bpkit.verification.case import Case, Evaluation
from bpkit.verification.check import Failed

# Beyond this many standard deviations of a normal input lies its tail.
TAIL = 3.0
# A region counts as at least this share of its tensor: below, a difference is rounding of the whole.
REGION_FLOOR = 1e-2
# A gradient this much smaller than the largest one is compared to that one: its true value may be zero.
NEGLIGIBLE = 1e-6


def relative_error(
    actual: Tensor, expected: Tensor, regions: Sequence[Tensor] = (), scale: float = 0.0
) -> float:
    """max|a-b| / max|b| over the tensor and over each of its `regions` apart, whichever is larger.

    Args:
        actual: what was computed.
        expected: what it should be, of the same shape.
        regions: boolean masks of that shape.
        scale: size below which a difference means nothing, such as that of the model's largest
            gradient for one that is zero; the denominator is never smaller.

    Returns:
        0 for equal tensors (NaN equals NaN), infinity where one is finite and the other is not.
    """
    a, b = actual.detach().double(), expected.detach().double()
    gap = _gap(a, b)
    size = b.abs().nan_to_num(0.0, 0.0)
    whole = max(_max(size), scale)
    errors = [_ratio(_max(gap), whole)]
    for region in regions:
        floor = max(_max(size[region]), REGION_FLOOR * whole)
        errors.append(_ratio(_max(gap[region]), floor))
    return max(errors)


def regions(value: Tensor) -> tuple[Tensor, ...]:
    """The two tails of `value` and what lies between, as masks."""
    value = value.detach()
    return tuple(mask for mask in (value < -TAIL, value.abs() <= TAIL, value > TAIL) if bool(mask.any()))


@dataclass(frozen=True)
class Difference:
    """How one tensor differs from another.

    Attributes:
        text: the sentence, with the two numbers side by side.
        points: `(x, error)` of elements across the tensor, the worst among them, for a plot: x is the
            input's value there, or else the element's number.
    """

    text: str
    points: tuple[tuple[float, float], ...] = ()

    def __str__(self) -> str:
        return self.text


def difference(
    name: str,
    actual: Tensor | None,
    expected: Tensor | None,
    rtol: float,
    *,
    like: Tensor | None = None,
    scale: float = 0.0,
) -> Difference | None:
    """None where `actual` is `expected` to `rtol`, else a sentence with the two numbers side by side.

    None stands for zeros. `like` is a tensor by whose values the regions are told; `scale` as in
    `relative_error`.
    """
    if expected is None:
        if actual is None:
            return None
        expected = torch.zeros_like(actual)
    if actual is None:
        actual = torch.zeros_like(expected)
    if actual.shape != expected.shape:
        return Difference(f"{name} has shape {list(actual.shape)}, not {list(expected.shape)}")
    masks = regions(like) if like is not None and like.shape == expected.shape else ()
    error = relative_error(actual, expected, masks, scale)
    if error <= rtol:
        return None
    gap = _gap(actual.detach().double(), expected.detach().double())
    flat = int(gap.reshape(-1).argmax())
    where = [int(index) for index in torch.unravel_index(torch.tensor(flat), gap.shape)]
    got, right = actual.detach().reshape(-1)[flat].item(), expected.detach().reshape(-1)[flat].item()
    place = f" at {where}" if where else ""
    text = f"{name}{place} is {got:.10g}, not {right:.10g}: relative error {error:.1e}, allowed {rtol:.0e}"
    size = max(_max(expected.nan_to_num(0.0, 0.0, 0.0)), scale) or 1.0
    return Difference(text, _points(gap / size, like))


# More points of a plot would hide each other.
POINTS = 200


def _points(errors: Tensor, like: Tensor | None) -> tuple[tuple[float, float], ...]:
    count = errors.numel()
    if like is not None and like.shape == errors.shape and like.is_floating_point():
        x = like.detach().double().reshape(-1)
    else:
        x = torch.arange(count, dtype=torch.float64)
    chosen = sorted({*range(0, count, -(-count // POINTS)), int(errors.reshape(-1).argmax())})
    return tuple((float(x[i]), float(errors.reshape(-1)[i])) for i in chosen)


def require_equal(
    case: Case,
    actual: Evaluation,
    expected: Evaluation,
    rtol: float,
    *,
    where: str = "",
    against: str = "",
    usual: Evaluation | None = None,
) -> None:
    """Fail with the first output or gradient of `actual` that is not `expected`'s.

    Args:
        case: names the values.
        actual: what is proven.
        expected: what it should be.
        rtol: relative error allowed.
        where: under what circumstances, ahead of the sentence.
        against: what `expected` is, behind it.
        usual: an evaluation on ordinary values, whose sizes are the least scale of the comparison.
    """
    if len(actual.outputs) != len(expected.outputs):
        raise Failed(f"{where}{len(actual.outputs)} output tensors, not {len(expected.outputs)}{against}")
    for index, (a, b) in enumerate(zip(actual.outputs, expected.outputs, strict=True)):
        name = "the output" if len(actual.outputs) == 1 else f"output {index}"
        like = next((case.values[i] for i in case.differentiable if case.values[i].shape == b.shape), None)
        scale = _max(usual.outputs[index]) if usual is not None else 0.0
        wrong = difference(name, a, b, rtol, like=like, scale=REGION_FLOOR * scale)
        if wrong:
            raise Failed(f"{where}{wrong}{against}", wrong.points)
    largest = max((_max(g) for g in expected.gradients.values() if g is not None), default=0.0)
    for position, gradient in expected.gradients.items():
        size = 0.0 if gradient is None else _max(gradient)
        scale = largest if size < NEGLIGIBLE * largest else 0.0
        if usual is not None and (typical := usual.gradients.get(position)) is not None:
            scale = max(scale, REGION_FLOOR * _max(typical))
        wrong = difference(
            f"the gradient of {case.names[position]}",
            actual.gradients.get(position),
            gradient,
            rtol,
            like=case.values[position],
            scale=scale,
        )
        if wrong:
            raise Failed(f"{where}{wrong}{against}", wrong.points)


def same_bytes(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape and dtype hold the very same bits."""
    return torch.equal(_bytes(a), _bytes(b))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _gap(a: Tensor, b: Tensor) -> Tensor:
    """|a-b|, 0 where both are the same infinity or NaN, infinite where only one is finite."""
    same = (a == b) | (a.isnan() & b.isnan())
    return torch.where(same, 0.0, (a - b).abs()).nan_to_num(nan=math.inf, posinf=math.inf)


def _max(tensor: Tensor) -> float:
    return float(tensor.detach().abs().max()) if tensor.numel() else 0.0


def _ratio(gap: float, size: float) -> float:
    return 0.0 if gap == 0 else math.inf if size == 0 else gap / size
