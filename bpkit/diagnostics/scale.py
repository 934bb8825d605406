"""Scale: numbers of a size that their dtype, or the network, is not made for.

*Inputs* far from a variance of 1, into a layer with weights: initialisation assumes that size (LeCun et al.
1998, section 4.3), and with it every rate. *Half precision*: float16 holds nothing below 6e-8, and only a
few digits below 6e-5; errors δ that small vanish one by one. A loss scale (`torch.amp.GradScaler`) lifts
them; one that has fallen to nothing says that they overflow instead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from statistics import median

from bpkit.core.finding import Finding
from bpkit.diagnostics.diagnostic import Diagnostic
from bpkit.diagnostics.instruments import Activations, LossScale, Underflow
from bpkit.diagnostics.sample import Sample

WINDOW = 4  # samples
LARGE, SMALL = 20.0, 1e-3  # root mean square of an input
LOST = 0.5  # of the errors in float16
COLLAPSED = 1.0  # a loss scale that has come down to this or below scales nothing


class Scale(Diagnostic):
    """Inputs, half-precision errors and loss scales out of proportion."""

    needs = (Activations, Underflow, LossScale)

    def __init__(self) -> None:
        self._inputs: deque[float] = deque(maxlen=WINDOW)
        self._lost: deque[Mapping[str, float]] = deque(maxlen=WINDOW)
        self._scales: deque[float] = deque(maxlen=WINDOW)

    def observe(self, sample: Sample) -> Iterable[Finding]:
        """A finding once the window agrees."""
        first = _first(sample)
        if first is not None:
            self._inputs.append(sample.by_module(Activations, "input")[first])
        self._lost.append({k: v for k, v in sample.by_module(Underflow, "lost").items() if v == v})
        scale = sample[LossScale][0]
        if scale is not None:
            self._scales.append(scale)
        if first is not None and len(self._inputs) == WINDOW:
            size = median(self._inputs)
            if size > LARGE or 0 < size < SMALL:
                yield sample.finding(
                    "scale",
                    (first,),
                    {"input_rms": size},
                    f"the inputs of '{first}' have a root mean square of {size:.3g}. "
                    "Bring the data to mean 0 and variance 1 (subtract the training set's mean, divide by "
                    "its standard deviation), or put a normalisation layer first",
                )
        if len(self._lost) == WINDOW:
            usual = {name: median(each.get(name, 0.0) for each in self._lost) for name in self._lost[-1]}
            where = tuple(name for name, share in usual.items() if share > LOST)
            if where:
                yield sample.finding(
                    "scale",
                    where,
                    {"share_lost": max(usual[name] for name in where), "layers": len(where)},
                    f"the errors at '{where[0]}' are too small for float16 and are lost. "
                    "Scale the loss with torch.amp.GradScaler, or use bfloat16",
                )
        if len(self._scales) == WINDOW and max(self._scales) <= COLLAPSED:
            yield sample.finding(
                "scale",
                (),
                {"loss_scale": self._scales[-1]},
                f"the loss scale has come down to {self._scales[-1]:.3g}: something overflows float16 at "
                "every step. Keep that part in float32 (torch.autocast(device_type, enabled=False)), clip "
                "the gradient, or use bfloat16",
            )


def _first(sample: Sample) -> str | None:
    """The first layer with a matrix, if nothing has normalised its input: it is called before any other."""
    if not sample.called:
        return None
    matrices = {info.layer for info in sample.network.parameters if info.matrix}
    sizes = sample.by_module(Activations, "input")
    for place in sample.called:
        module = sample.network.modules[place]
        if module.name in matrices:
            return module.name if sizes.get(module.name, float("nan")) == sizes.get(module.name) else None
        if "Norm" in module.kind or module.kind.startswith("Embedding"):
            return None
    return None
