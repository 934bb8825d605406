"""What is measured of some elements of each parameter: how they move, where to, and how they are spread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import nan, sqrt

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bpkit.diagnostics.instruments.figures import Batch, Figures, Value, batch, by_rows, few, together
from bpkit.diagnostics.instruments.instrument import Instrument
from bpkit.diagnostics.instruments.norms import dense, over_ranks
from bpkit.diagnostics.sample import Provenance, Sample
from bpkit.diagnostics.shards import is_sharded, local
from bpkit.diagnostics.subject import Subject
from bpkit.tensorboard import record

ROWS = 64  # that are compared with the first
FEW = 1 << 13  # elements that stand for a gradient's direction, and for how its sizes are distributed
SUMS = 3  # over the elements of a parameter
KEPT = 1 << 14  # elements that are compared before and after a step; of larger parameters every n-th


class Update(Instrument):
    """‖Δp‖ of the step, the share of elements that moved at all, and of those that have a gradient.

    Of a parameter with more than 16,384 elements every n-th is compared, and the norm scaled up to all; of a
    sharded one every rank compares as many of its own.
    """

    columns = ("norm", "moved", "asked")

    def before_step(self, optimizer: Optimizer) -> None:
        self._before = [_few(parameter, KEPT) for parameter in self.subject.parameters]

    def after_step(self, optimizer: Optimizer) -> None:
        after, grads = [], []
        for parameter, before in zip(self.subject.parameters, self._before, strict=True):
            now = _alike(_few(parameter, KEPT, copied=False), before)
            grad = None if parameter.grad is None else _few(parameter.grad, KEPT, copied=False)
            if now is not None and before is not None and _alike(grad, now) is None:
                grad = now.ne(before).to(now.dtype)  # who moved without one was asked to
            after.append(now)
            grads.append(grad)
        sums, self._before = _sums(_moved, self.subject.parameters, self._before, after, grads), []
        self._figures = sums.then(_update)

    def read(self, lived: frozenset[int]) -> Batch:
        return self._figures


class Direction(Instrument):
    """Cosine of the gradient with the last sampled one, and with the optimizer's momentum before the step.

    Of large parameters every n-th element. NaN where there is no other, or either is zero.
    """

    columns = ("last", "momentum")

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self._last: dict[int, Tensor] = {}

    def before_step(self, optimizer: Optimizer) -> None:
        self._momenta: list[Tensor | None] = []
        for parameter in self.subject.parameters:
            state = optimizer.state.get(parameter, {})
            momentum = state.get("exp_avg", state.get("momentum_buffer"))
            self._momenta.append(_few(momentum, FEW) if isinstance(momentum, Tensor) else None)

    def after_step(self, optimizer: Optimizer) -> None:
        parameters = self.subject.parameters
        grads = [None if each.grad is None else _few(each.grad, FEW) for each in parameters]
        last = [self._last.get(id(each)) for each in parameters]
        others = [
            [_alike(one, grad) for one, grad in zip(each, grads, strict=True)]
            for each in (last, self._momenta)
        ]
        self._cosines = [_sums(_products, parameters, grads, other).then(_cosine) for other in others]
        self._known = [each.grad is not None and each.grad.layout is torch.strided for each in parameters]
        self._last = {
            id(each): grad for each, grad in zip(parameters, grads, strict=True) if grad is not None
        }
        self._momenta = []

    def read(self, lived: frozenset[int]) -> Batch:
        known = self._known

        def finish(*values: Sequence[Value]) -> list[Value]:
            return [
                tuple(each[0] if isinstance(each, tuple) else nan for each in pair) if there else None
                for there, *pair in zip(known, *values, strict=True)
            ]

        return together(finish, *self._cosines)


class Symmetry(Instrument):
    """How far a matrix is from having its rows alike: largest |w - first row| ÷ largest |w|; 0 if they are.

    What rounding alone can make of equal rows counts as 0. None for vectors, for a single row, and, after the
    first five samples, on four of five: what has come apart stays apart.
    """

    provenance = Provenance("before step", reduced=False)

    start, every = 5, 5

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self._samples = 0

    def before_step(self, optimizer: Optimizer) -> None:
        self._figures: list[Tensor | None] = []
        self._samples += 1
        if self._samples > self.start and self._samples % self.every:
            self._figures = [None] * len(self.subject.parameters)
            return
        for parameter in self.subject.parameters:
            if not _comparable(parameter):
                self._figures.append(None)
                continue
            rows = local(parameter.detach())
            rows = rows.reshape(len(rows), -1)[:ROWS]
            spread = (rows - rows[:1]).abs().amax() / rows.abs().amax().clamp_min(1e-30)
            self._figures.append(torch.where(spread < 8 * torch.finfo(rows.dtype).eps, 0.0, spread))

    def read(self, lived: frozenset[int]) -> Figures:
        return self._figures


class GradientHistogram(Instrument):
    """How the sizes of a gradient's elements are distributed: counts in bins of half a decade.

    Of large parameters every n-th element; on every fifth sample alone, for curves say most of it.
    """

    columns = record.BINS
    provenance = Provenance("at step", reduced=False)
    every = 5

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self._samples = 0

    def after_step(self, optimizer: Optimizer) -> None:
        self._samples += 1
        grads = [dense(each.grad) for each in self.subject.parameters]
        asked = self._samples % self.every == 1
        some = [None if grad is None or not asked else _few(grad, FEW, copied=False) for grad in grads]
        self._figures = by_rows(_counts, some)

    def read(self, lived: frozenset[int]) -> Batch:
        return self._figures

    @classmethod
    def by_layer(cls, sample: Sample) -> dict[str, dict[str, float]]:
        """Counts by bin and layer; empty where this sample has none."""
        if all(figure is None for figure in sample[cls]):
            return {}
        found: dict[str, dict[str, float]] = {name: {} for name in cls.columns}
        for layer, indices in sample.layers.items():
            known = [figure for index in indices if (figure := sample[cls][index]) is not None]
            for name, counts in zip(cls.columns, zip(*known, strict=True), strict=bool(known)):
                found[name][layer] = sum(counts)
        return found


def _sums(
    function: Callable[..., Tensor], parameters: Sequence[nn.Parameter], *columns: Sequence[Tensor | None]
) -> Batch:
    """What `function` sums up of a few elements of each parameter, as if of all, and how many these are.

    Args:
        function: from [rows, elements] of each column to [rows, SUMS].
        parameters: what the elements are of; of sharded ones the sums of all ranks are added up, and every
            rank has to call this.
        columns: elements by parameter.
    """
    if not any(map(is_sharded, parameters)):
        counts = [None if each is None else each.numel() for each in columns[0]]

        def finish(values: Sequence[Value]) -> list[Value]:
            return [
                (*(value * (parameter.numel() / count) for value in each), float(parameter.numel()))
                if isinstance(each, tuple) and count
                else None
                for each, count, parameter in zip(values, counts, parameters, strict=True)
            ]

        return together(finish, by_rows(function, *columns))
    own: list[Tensor | None] = []
    for parameter, *each in zip(parameters, *columns, strict=True):
        known = [tensor[None] for tensor in each if tensor is not None]
        if len(known) < len(each):
            own.append(None)
            continue
        there = local(parameter.detach()).numel()
        sums = function(*known)[0].double() * (there / known[0].numel())
        own.append(torch.cat([sums, sums.new_full((1,), there)]))
    return batch(over_ranks(parameters, own, (SUMS + 1,)))


def _comparable(parameter: nn.Parameter) -> bool:
    """Whether it has rows of numbers to compare."""
    if nn.parameter.is_lazy(parameter) or parameter.dim() < 2 or len(local(parameter)) < 2:
        return False
    return parameter.is_floating_point() and parameter.dtype.itemsize > 1


def _moved(before: Tensor, after: Tensor, grad: Tensor) -> Tensor:
    change = _wide(after) - _wide(before)
    counts = [each.count_nonzero(1) for each in (change, grad)]
    return torch.stack([change.abs().square().sum(1), *counts], 1)


def _update(change: float, moved: float, asked: float, count: float) -> Value:
    return (sqrt(change), moved / count, asked / count) if count else None


def _products(one: Tensor, other: Tensor) -> Tensor:
    if one.is_complex():
        one, other = torch.view_as_real(one).flatten(1), torch.view_as_real(other).flatten(1)
    one, other = _wide(one), _wide(other)
    return torch.stack([(one * other).sum(1), one.square().sum(1), other.square().sum(1)], 1)


def _cosine(dot: float, one: float, other: float, count: float) -> Value:
    lengths = sqrt(one) * sqrt(other)
    return (dot / lengths if lengths else nan,)


def _counts(values: Tensor) -> Tensor:
    """Counts of zeros, of those below, between and above `record.EDGES`, and of non-finite ones."""
    sizes = values.abs().float()
    edges = torch.tensor([10.0**each for each in record.EDGES], device=sizes.device)
    place = torch.bucketize(sizes, edges, right=True) + 1
    place = place.masked_fill(sizes == 0, 0).masked_fill(~sizes.isfinite(), len(edges) + 2)
    # Not bincount, which has to wait for the device to know its length.
    counts = sizes.new_zeros(len(sizes), len(edges) + 3)
    return counts.scatter_add_(1, place, torch.ones_like(sizes))


def _few(tensor: Tensor, most: int, *, copied: bool = True) -> Tensor | None:
    """Up to `most` elements of this rank's part, evenly spread; None of what has none, or is sparse."""
    if nn.parameter.is_lazy(tensor) or tensor.layout is not torch.strided or not local(tensor).numel():
        return None
    found = few(tensor, most)
    return found.clone() if copied else found


def _alike(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """What can be compared with the other: it has as many elements."""
    return one if one is not None and other is not None and one.shape == other.shape else None


def _wide(tensor: Tensor) -> Tensor:
    """In float64, where the squares of what has nearly vanished are numbers still, if the device has it."""
    if tensor.device.type == "mps":
        return tensor.float()
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)
