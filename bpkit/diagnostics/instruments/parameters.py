"""What is measured of parameters: gradients, weights, updates, and how the optimizer treats each."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bpkit.diagnostics.instruments.figures import Batch, Figures, Value, by_rows
from bpkit.diagnostics.instruments.instrument import Instrument
from bpkit.diagnostics.instruments.norms import dense, norms
from bpkit.diagnostics.sample import Provenance, Sample
from bpkit.diagnostics.shards import local
from bpkit.diagnostics.subject import Subject
from bpkit.tensorboard import record

ROWS = 64  # that are compared with the first
FEW = 1 << 13  # elements that stand for a gradient's direction, and for how its sizes are distributed
KEPT = 1 << 14  # elements that are compared before and after a step; of larger parameters every n-th


class GradientNorm(Instrument):
    """‖∂L/∂p‖ as the optimizer used it: unscaled, accumulated, reduced, after clipping."""

    light = True

    def after_step(self, optimizer: Optimizer) -> None:
        self._norms = norms([dense(parameter.grad) for parameter in self.subject.parameters])
        if self.subject.still_scaled(optimizer):
            self._norms = [self.subject.unscaled(value) for value in self._norms]

    def read(self, lived: frozenset[int]) -> Figures:
        return self._norms


class AccumulatedNorm(Instrument):
    """‖∂L/∂p‖ when the last backward before the step is over: unscaled, reduced, before clipping.

    Under a loss scaler a step that it abandons is overwritten by the next.
    """

    provenance = Provenance("accumulated")

    def arm(self) -> None:
        self._norms: list[Tensor | None] = [None] * len(self.subject.parameters)

    def on_backward(self) -> None:
        self._norms = norms([dense(parameter.grad) for parameter in self.subject.parameters])

    def read(self, lived: frozenset[int]) -> Figures:
        return [self.subject.unscaled(value) for value in self._norms]


class WeightNorm(Instrument):
    """‖p‖ as the gradient saw it, before the optimizer moves it."""

    provenance = Provenance("before step")

    light = True

    def before_step(self, optimizer: Optimizer) -> None:
        lazy = nn.parameter.is_lazy
        self._norms = norms([None if lazy(each) else each.detach() for each in self.subject.parameters])

    def read(self, lived: frozenset[int]) -> Figures:
        return self._norms


class Update(Instrument):
    """‖Δp‖ of the step, the share of elements that moved at all, and of those that have a gradient.

    Of a parameter with more than 16,384 elements every n-th is compared, and the norm scaled up to all.
    """

    columns = ("norm", "moved", "asked")
    provenance = Provenance("at step", reduced=False)

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
        figures, self._before = by_rows(_moved, self._before, after, grads), []
        # Of each element that is compared so many are there; of a shard the whole's.
        shares = [
            1.0 if now is None else (parameter.numel() / now.numel()) ** 0.5
            for parameter, now in zip(self.subject.parameters, after, strict=True)
        ]

        def finish(numbers: Sequence[list[float]]) -> list[Value]:
            return [
                (figure[0] * share, *figure[1:]) if isinstance(figure, tuple) else None
                for figure, share in zip(figures.finish(numbers), shares, strict=True)
            ]

        self._figures = Batch(figures.tensors, finish)

    def read(self, lived: frozenset[int]) -> Batch:
        return self._figures


class Direction(Instrument):
    """Cosine of the gradient with the last sampled one, and with the optimizer's momentum before the step.

    Of large parameters every n-th element. NaN where there is no other, or either is zero.
    """

    columns = ("last", "momentum")
    provenance = Provenance("at step", reduced=False)

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
        last = [_alike(self._last.get(id(each)), grad) for each, grad in zip(parameters, grads, strict=True)]
        momenta = [_alike(each, grad) for each, grad in zip(self._momenta, grads, strict=True)]
        batches = by_rows(_cosine, grads, last), by_rows(_cosine, grads, momenta)
        known = [grad is not None for grad in grads]
        self._last = {
            id(each): grad for each, grad in zip(parameters, grads, strict=True) if grad is not None
        }
        self._momenta = []

        def finish(numbers: Sequence[list[float]]) -> list[Value]:
            between = len(batches[0].tensors)
            parts = batches[0].finish(numbers[:between]), batches[1].finish(numbers[between:])
            return [
                tuple(each[0] if isinstance(each, tuple) else nan for each in pair) if there else None
                for there, *pair in zip(known, *parts, strict=True)
            ]

        self._figures = Batch([*batches[0].tensors, *batches[1].tensors], finish)

    def read(self, lived: frozenset[int]) -> Batch:
        return self._figures


class GradientRate(Instrument):
    """Long-run factor from gradient to update, lr / (1 − momentum), where the optimizer has one.

    None where the update does not scale with the gradient: an optimizer with `eps` or `betas` in its
    groups (Adam and its kin) divides by the gradient's own size. None for an unknown optimizer too.
    """

    light = True

    def after_step(self, optimizer: Optimizer) -> None:
        rates: dict[int, Tensor | float] = {}
        for group in optimizer.param_groups:
            if "momentum" in group and not {"eps", "betas"} & group.keys():
                rate = group["lr"] / (1 - min(group["momentum"], 0.999))
                rates.update((id(parameter), rate) for parameter in group["params"])
        self._rates = [rates.get(id(parameter)) for parameter in self.subject.parameters]

    def read(self, lived: frozenset[int]) -> Figures:
        return self._rates


class Standing(Instrument):
    """What a parameter is to the training.

    `trainable`: it requires a gradient; `reached`: it has one; `held`: the optimizer has it; `rate`: its
    learning rate, NaN where the optimizer has none. 1 and 0 for yes and no.
    """

    columns = ("trainable", "reached", "held", "rate")

    light = True

    def after_step(self, optimizer: Optimizer) -> None:
        rates: dict[int, float] = {}
        for group in optimizer.param_groups:
            rate = float(group.get("lr", torch.nan))  # of a tensor once a group
            rates.update((id(parameter), rate) for parameter in group["params"])
        self._figures = [
            (
                float(each.requires_grad),
                float(each.grad is not None),
                float(id(each) in rates),
                rates.get(id(each), torch.nan),
            )
            for each in self.subject.parameters
        ]

    def read(self, lived: frozenset[int]) -> Figures:
        return self._figures


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
        few = [None if grad is None or not asked else _few(grad, FEW, copied=False) for grad in grads]
        self._figures = by_rows(_counts, few)

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


def _comparable(parameter: nn.Parameter) -> bool:
    """Whether it has rows of numbers to compare."""
    if nn.parameter.is_lazy(parameter) or parameter.dim() < 2 or len(local(parameter)) < 2:
        return False
    return parameter.is_floating_point() and parameter.dtype.itemsize > 1


def _moved(before: Tensor, after: Tensor, grad: Tensor) -> Tensor:
    change = _wide(after) - _wide(before)
    norm = torch.linalg.vector_norm(change, dim=1)
    shares = [each.count_nonzero(1) / each.shape[1] for each in (change, grad)]
    return torch.stack([norm, *(share.to(norm.dtype) for share in shares)], 1)


def _cosine(one: Tensor, other: Tensor) -> Tensor:
    if one.is_complex():
        one, other = torch.view_as_real(one).flatten(1), torch.view_as_real(other).flatten(1)
    one, other = one.float(), other.float()
    lengths = torch.linalg.vector_norm(one, dim=1) * torch.linalg.vector_norm(other, dim=1)
    return ((one * other).sum(1) / lengths)[:, None]


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
    if nn.parameter.is_lazy(tensor) or tensor.is_sparse:
        return None
    flat = local(tensor.detach()).reshape(-1)
    if not flat.numel():
        return None
    few = flat[:: -(-flat.numel() // most)]
    return few.clone() if copied else few


def _alike(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """What can be compared with the other: it has as many elements."""
    return one if one is not None and other is not None and one.shape == other.shape else None


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor
