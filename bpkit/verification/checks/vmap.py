"""`torch.func.vmap` over every input, along every axis."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from bpkit.verification.case import Case, Evaluation, Forward, backward, both, call, cotangents, seed
from bpkit.verification.check import Check, Failed, Skipped, one_line
from bpkit.verification.compare import require_equal
from bpkit.verification.variants import resampled

BATCH = 3
OUTSIDE = "no batch could be made up of values that the target takes"
# What torch says of a Function that did not ask to be batched, and of code that no batching can follow.
REFUSALS = (
    "setup_context staticmethod",
    "does not have vmap support",
    "Batching rule not implemented",
    "data-dependent control flow",
    "Cannot access data pointer",
    ".item()",
    ".numpy()",
    "Can't call numpy()",
)


def run(case: Case) -> str | None:
    """Batched along each input alone and along all, values and gradients equal a loop's."""
    case.need_gradient()
    refused = []
    tried = 0
    for axes in _in_dims(case):
        batched = case.having({i: stack(case.values[i], axis) for i, axis in axes.items()})
        dims = tuple(axes.get(i) for i in range(len(case.values)))

        def measure(
            forward: Forward,
            batched: Case = batched,
            dims: tuple[int | None, ...] = dims,
        ) -> Evaluation:
            values = batched.fresh()
            seed()
            outputs = torch.func.vmap(forward, in_dims=dims, randomness="same")(*values)
            return _evaluation(outputs, values)

        where = f"under vmap with in_dims={dims}, "
        try:
            expected = _looped(batched, axes)
        except Exception as error:  # one by one, too, what this check made up is refused
            refused.append(f"{OUTSIDE} ({one_line(error)})")
            continue
        try:
            actual = both(case, measure, refusals=REFUSALS)
        except Skipped as refusal:
            refused.append(str(refusal))
            continue
        except Exception as error:
            raise Failed(f"{where}{one_line(error)}") from error
        require_equal(case, actual, expected, case.rtol, where=where)
        tried += 1
    if not tried:
        raise Skipped(refused[0])
    return f"{tried} of {tried + len(refused)} in_dims; the others: {refused[0]}" if refused else None


def _in_dims(case: Case) -> Iterator[dict[int, int]]:
    """Each tensor alone along every axis; all differentiable ones along the first, the last, and mixed."""
    for position, value in enumerate(case.values):
        if isinstance(value, Tensor) and position not in case.buffers:
            axes = range(value.dim() + 1) if position in case.differentiable else range(1)
            yield from ({position: axis} for axis in axes)
    first, *others = case.differentiable
    if others:
        yield dict.fromkeys(case.differentiable, 0)
        yield {first: 0, **dict.fromkeys(others, -1)}
        yield {first: -1, **dict.fromkeys(others, 0)}
    yield dict.fromkeys(case.differentiable, -1)


def stack(value: Tensor, axis: int) -> Tensor:
    """`BATCH` tensors like `value`: of values between its own, or an index in another order."""
    if value.is_floating_point():
        others = resampled(value, (BATCH - 1, *value.shape))
        return torch.stack([value.detach(), *others], axis)
    return torch.stack([value.roll(i, 0) if value.dim() else value for i in range(BATCH)], axis)


def _looped(case: Case, axes: dict[int, int]) -> Evaluation:
    """Each of the batch alone; a buffer is as it was before each, as it is before the one call of vmap."""
    values = case.fresh()

    def one(k: int, i: int, value: Any) -> Any:
        if i in axes:
            return value.select(axes[i], k)
        return value.clone() if i in case.buffers else value

    slices = [call(case.forward, [one(k, i, value) for i, value in enumerate(values)]) for k in range(BATCH)]
    return _evaluation(tuple(torch.stack(parts) for parts in zip(*slices, strict=True)), values)


def _evaluation(outputs: Sequence[Tensor], values: list[object]) -> Evaluation:
    detached = tuple(output.detach() for output in outputs)
    return Evaluation(detached, backward(outputs, values, cotangents(outputs)))


CHECK = Check(
    name="vmap",
    harm="Per-sample gradients and ensembles through torch.func.vmap are wrong or refused.",
    remedy="Set generate_vmap_rule = True and write forward and backward with batchable operations, or "
    "mend the vmap method for the in_dims named above.",
    run=run,
    subject=Case,
)
