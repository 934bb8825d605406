"""What is measured of parameters: gradients, weights, updates, and how the optimizer treats each."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bpkit.diagnostics.instruments.instrument import Figures, Instrument
from bpkit.diagnostics.instruments.norms import dense, norms
from bpkit.diagnostics.sample import Provenance, Sample
from bpkit.diagnostics.shards import local
from bpkit.diagnostics.subject import Subject
from bpkit.tensorboard import record

ROWS = 64  # that are compared with the first
FEW = 1 << 13  # elements that stand for a gradient's direction, and for how its sizes are distributed
KEPT = 1 << 16  # elements that are compared before and after a step; of larger parameters every n-th


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

    Of a parameter with more than 65,536 elements every n-th is compared, and the norm scaled up to all.
    """

    columns = ("norm", "moved", "asked")
    provenance = Provenance("at step", reduced=False)

    def before_step(self, optimizer: Optimizer) -> None:
        self._before = [_thinned(parameter) for parameter in self.subject.parameters]
        self._before = [None if each is None else each.clone() for each in self._before]

    def after_step(self, optimizer: Optimizer) -> None:
        self._figures: list[Tensor | None] = []
        for parameter, before in zip(self.subject.parameters, self._before, strict=True):
            after = _thinned(parameter)
            if before is None or after is None or after.shape != before.shape:
                self._figures.append(None)
                continue
            change = (after.float() if after.dtype.itemsize < 4 else after) - before
            whole = (parameter.numel() / after.numel()) ** 0.5  # of a shard as well
            norm = torch.linalg.vector_norm(change) * whole
            grad = None if parameter.grad is None or parameter.grad.is_sparse else _thinned(parameter.grad)
            asked = change if grad is None or grad.shape != change.shape else grad
            shares = [each.count_nonzero() / each.numel() for each in (change, asked)]
            self._figures.append(torch.stack([norm, *shares]))
        self._before = []

    def read(self, lived: frozenset[int]) -> Figures:
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
            kept = _thinned(momentum, FEW) if isinstance(momentum, Tensor) else None
            self._momenta.append(None if kept is None else kept.clone())

    def after_step(self, optimizer: Optimizer) -> None:
        self._figures: list[Tensor | None] = []
        kept: dict[int, Tensor] = {}
        for parameter, momentum in zip(self.subject.parameters, self._momenta, strict=True):
            grad = (
                None if parameter.grad is None or parameter.grad.is_sparse else _thinned(parameter.grad, FEW)
            )
            if grad is None:
                self._figures.append(None)
                continue
            grad = grad.clone()
            figures = [_cosine(grad, self._last.get(id(parameter))), _cosine(grad, momentum)]
            self._figures.append(torch.stack(figures))
            kept[id(parameter)] = grad
        self._last, self._momenta = kept, []

    def read(self, lived: frozenset[int]) -> Figures:
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
        self._figures: list[Tensor | None] = [None] * len(self.subject.parameters)
        self._samples += 1
        if self._samples % self.every != 1:
            return
        for index, parameter in enumerate(self.subject.parameters):
            grad = dense(parameter.grad)
            few = None if grad is None else _thinned(grad, FEW)
            if few is not None:
                self._figures[index] = _counts(few.abs().float())

    def read(self, lived: frozenset[int]) -> Figures:
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


def _counts(sizes: Tensor) -> Tensor:
    """Counts of zeros, of those below, between and above `record.EDGES`, and of non-finite ones."""
    edges = torch.tensor([10.0**each for each in record.EDGES], device=sizes.device)
    finite = sizes.isfinite()
    place = torch.bucketize(sizes, edges, right=True) + 1
    place = place.masked_fill(sizes == 0, 0).masked_fill(~finite, len(edges) + 2)
    # Not bincount, which has to wait for the device to know its length.
    return torch.zeros(len(edges) + 3, device=sizes.device).scatter_add_(0, place, torch.ones_like(sizes))


def _thinned(tensor: Tensor, most: int = KEPT) -> Tensor | None:
    """Up to `most` elements of this rank's part, evenly spread, as a view where that can be."""
    if nn.parameter.is_lazy(tensor):
        return None
    flat = local(tensor.detach()).reshape(-1)
    return flat[:: -(-flat.numel() // most)] if flat.numel() else None


def _cosine(one: Tensor, other: Tensor | None) -> Tensor:
    if other is None or other.shape != one.shape:
        return torch.full((), torch.nan, device=one.device)
    if one.is_complex():
        one, other = torch.view_as_real(one).reshape(-1), torch.view_as_real(other).reshape(-1)
    one, other = one.float(), other.float()
    return (one @ other) / (torch.linalg.vector_norm(one) * torch.linalg.vector_norm(other))
