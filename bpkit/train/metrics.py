"""Metrics: `(output, target) -> 0-d tensor`, the mean over a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isnan
from types import MappingProxyType

from torch import Tensor

Metric = Callable[[Tensor, Tensor], Tensor]


def accuracy(output: Tensor, target: Tensor) -> Tensor:
    """Share of targets `[n, *]`, or probabilities `[n, c, *]`, whose logit is the highest of `[n, c, *]`.

    Raises:
        ValueError: an output without classes, or another shape of targets.
    """
    if target.is_floating_point() and target.shape == output.shape:
        target = target.argmax(1)
    if output.dim() < 2 or output.shape[1] < 2 or target.shape != output.argmax(1).shape:
        raise ValueError("it needs logits [n, c, *] and targets [n, *], or probabilities [n, c, *]")
    return (output.argmax(1) == target).float().mean()


def top_5_accuracy(output: Tensor, target: Tensor) -> Tensor:
    """Share of targets `[n]` whose logit is among the five highest of `[n, c]`.

    Raises:
        ValueError: fewer classes than five.
    """
    if output.dim() != 2 or output.shape[1] < 5:
        raise ValueError("it needs logits [n, c] of 5 classes or more")
    return (output.topk(5, 1).indices == target[:, None]).any(1).float().mean()


def mean_absolute_error(output: Tensor, target: Tensor) -> Tensor:
    """Mean of |output - target|, both `[*]`."""
    return (output - target).abs().mean()


METRICS: Mapping[str, Metric] = MappingProxyType(
    {each.__name__: each for each in (accuracy, top_5_accuracy, mean_absolute_error)}
)


def is_better(name: str, value: float, best: float | None) -> bool:
    """Whether `value` of the metric beats `best`: of losses and errors the smaller, else the greater.

    What is not a number beats nothing, or it would be the best for ever.
    """
    smaller_is_better = "loss" in name or "error" in name
    if isnan(value):
        return False
    return best is None or (value < best if smaller_is_better else value > best)
