"""Loss and metrics over a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bpkit.train import explain
from bpkit.train.batches import Batches, examples
from bpkit.train.metrics import Metric

Forward = Callable[[Any, Any], tuple[Any, Tensor]]


@torch.no_grad()
def evaluate(
    model: nn.Module, forward: Forward, metrics: Mapping[str, Metric], batches: Batches
) -> dict[str, float]:
    """Means over the examples of `batches`.

    Args:
        model: in evaluation mode inside, every module of it in its own mode after.
        forward: `(inputs, target) -> (output, loss)`.
        metrics: by name, `(output, target) -> number` of a batch.
        batches: what to go over.

    Raises:
        BpkitError: a metric that cannot take what the model gives.
    """
    totals: dict[str, Any] = dict.fromkeys(("loss", *metrics), 0.0)
    count = 0
    with _in_eval_mode(model):
        for inputs, target in batches.epoch():
            output, loss = forward(inputs, target)
            size = examples(target)
            for name, value in {"loss": loss.float(), **_measured(metrics, output, target)}.items():
                totals[name] = totals[name] + value * size
            count += size
    return {name: float(total) / count for name, total in totals.items()}


def _measured(metrics: Mapping[str, Metric], output: Any, target: Any) -> dict[str, Tensor | float]:
    values: dict[str, Tensor | float] = {}
    for name, metric in metrics.items():
        try:
            value: Any = metric(output, target)
            values[name] = value.float().reshape(()) if isinstance(value, Tensor) else float(value)
        except explain.USER_ERRORS as error:
            raise explain.metric_error(name, output, target, error) from error
    return values


@contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Frozen modules, which are in evaluation mode already, stay so after."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
