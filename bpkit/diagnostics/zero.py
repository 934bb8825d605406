"""Zero: weights whose start leaves nothing to tell units apart, or no gradient at all.

With all rows of a matrix equal, zero or any constant, all its units compute the same and get the same
gradient, for ever: the layer has the width of one (Goodfellow, Bengio & Courville, Deep Learning, section
8.4). A last layer or a residual branch that starts at zero gets different gradients, and is over it after a
step.
"""

from __future__ import annotations

from collections.abc import Iterable

from bpkit.core.finding import Finding
from bpkit.diagnostics.diagnostic import Diagnostic
from bpkit.diagnostics.instruments import GradientNorm, Standing, Symmetry
from bpkit.diagnostics.sample import Sample

SAMPLES = 5  # in a row


class Zero(Diagnostic):
    """Layers whose units are all alike, or whose gradient is exactly zero, sample after sample."""

    needs = (GradientNorm, Standing, Symmetry)

    def __init__(self) -> None:
        self._alike: dict[str, int] = {}
        self._silent: dict[str, int] = {}

    def observe(self, sample: Sample) -> Iterable[Finding]:
        """A finding once a layer was so for five samples."""
        alike: dict[str, None] = {}
        silent: dict[str, None] = {}
        columns = (sample[GradientNorm], sample[Symmetry], sample[Standing])
        for info, gradient, spread, standing in zip(sample.network.parameters, *columns, strict=True):
            if not info.matrix or not standing[0] or gradient is None:
                continue
            if spread is not None:
                self._alike[info.name] = self._alike.get(info.name, 0) + 1 if spread == 0 else 0
            self._silent[info.name] = self._silent.get(info.name, 0) + 1 if gradient == 0 else 0
            if self._alike.get(info.name, 0) >= SAMPLES:
                alike[info.layer] = None
            if self._silent[info.name] >= SAMPLES:
                silent[info.layer] = None
        layers = tuple(dict.fromkeys([*alike, *silent]))
        if not layers:
            return
        yield sample.finding(
            "zero",
            layers,
            {"layers_alike": len(alike), "layers_without_gradient": len(silent), "samples": SAMPLES},
            _ALIKE.format(layer=next(iter(alike))) if alike else _SILENT.format(layer=next(iter(silent))),
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
