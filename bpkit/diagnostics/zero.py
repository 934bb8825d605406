"""Zero: weights whose start leaves nothing to tell units apart, or no gradient at all.

With all rows of a matrix equal, zero or any constant, all its units compute the same and get the same
gradient, for ever: the layer has the width of one (Goodfellow, Bengio & Courville, Deep Learning, section
8.4). Where something else tells the units apart by a little, random biases as a rule, the rows move far
together and hardly apart. A last layer or a residual branch that starts at zero gets different gradients,
and is over it after a step.
"""

from __future__ import annotations

from collections.abc import Iterable

from bpkit.core.finding import Finding
from bpkit.diagnostics.diagnostic import Diagnostic
from bpkit.diagnostics.instruments import GradientNorm, Standing, Symmetry, Update, WeightNorm
from bpkit.diagnostics.sample import Sample

SAMPLES = 5  # in a row
TOGETHER = 15  # samples in which rows that started equal had time to come apart
MOVED = 0.1  # of a matrix's size, over the sampled steps: it has gone somewhere
APART = 1e-2  # of the largest weight: less tells hardly any units apart


class Zero(Diagnostic):
    """Layers whose units are all alike, or whose gradient is exactly zero, sample after sample."""

    needs = (GradientNorm, Standing, Symmetry)
    wants = (Update, WeightNorm)

    def __init__(self) -> None:
        self._alike: dict[str, int] = {}
        self._silent: dict[str, int] = {}
        self._samples = 0
        self._way: dict[str, float] = {}  # of matrices that started with all rows equal

    def observe(self, sample: Sample) -> Iterable[Finding]:
        """A finding once a layer was so for five samples, or moves as one for fifteen."""
        self._samples += 1
        self._walk(sample)
        alike: dict[str, None] = {}
        silent: dict[str, None] = {}
        held = SAMPLES
        columns = (sample[GradientNorm], sample[Symmetry], sample[Standing])
        for info, gradient, spread, standing in zip(sample.network.parameters, *columns, strict=True):
            if not info.matrix or not standing[0] or gradient is None:
                continue
            if spread is not None:
                self._alike[info.name] = self._alike.get(info.name, 0) + 1 if spread == 0 else 0
            self._silent[info.name] = self._silent.get(info.name, 0) + 1 if gradient == 0 else 0
            if self._alike.get(info.name, 0) >= SAMPLES:
                alike[info.layer] = None
            elif self._moves_as_one(info.name, spread):
                held = self._samples
                alike[info.layer] = None
            if self._silent[info.name] >= SAMPLES:
                silent[info.layer] = None
        layers = tuple(dict.fromkeys([*alike, *silent]))
        if not layers:
            return
        yield sample.finding(
            "zero",
            layers,
            {"layers_alike": len(alike), "layers_without_gradient": len(silent), "samples": held},
            _ALIKE.format(layer=next(iter(alike))) if alike else _SILENT.format(layer=next(iter(silent))),
        )

    def _walk(self, sample: Sample) -> None:
        """Add up how far each matrix goes that started with all rows equal, in parts of its size."""
        infos = sample.network.parameters
        if self._samples == 1:
            spreads = zip(infos, sample[Symmetry], strict=True)
            self._way = {info.name: 0.0 for info, spread in spreads if spread == 0}
        if not self._way or not sample.has(Update) or not sample.has(WeightNorm):
            return
        steps = zip(infos, sample.column(Update, "norm"), sample[WeightNorm], strict=True)
        for info, update, weight in steps:
            if info.name in self._way and update is not None and weight:
                self._way[info.name] += update / weight

    def _moves_as_one(self, name: str, spread: float | None) -> bool:
        """Whether equal rows have gone far and hardly apart; a table of scales comes apart as it goes."""
        way = self._way.get(name, 0.0)
        return (
            spread is not None
            and self._samples >= TOGETHER
            and way >= MOVED
            and spread < min(APART, way / 10)
        )


_ALIKE = (
    "the units of '{layer}' start alike and stay alike. Initialise its weights at random "
    "(torch.nn.init.kaiming_normal_ or xavier_uniform_); only biases may start at 0"
)
_SILENT = (
    "the gradient of '{layer}' is exactly zero: its input is zero, or a layer after it is dead or has "
    "weights of zero. Initialise these at random (torch.nn.init.kaiming_normal_), and look for a "
    "multiplication by zero"
)
