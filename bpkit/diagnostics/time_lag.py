"""Vanishing and exploding in time: how a recurrent layer's error fares on its way to earlier steps.

At every step back it is multiplied by the cell's Jacobian, W_hhᵀ diag φ′ for a plain one: l steps earlier it
is about λˡ of what it was, and unless λ is near 1 it has died out, or burst, within some tens of steps
(Hochreiter 1991; Bengio, Simard & Frasconi 1994; Pascanu, Mikolov & Bengio 2013). The weights see the sum
over all steps, in which the near ones hide that the far ones are lost; so it is measured by lag
(`instruments/time_lag.py`).

A short memory is no fault in itself: a task that needs none is learned, and the gradient over long lags
need not be there. *Vanishing* is a finding where the run has surely learned nothing. *Exploding* is one
unless the run learns in spite of it, as with a clip; at once where numbers have come to an end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import isfinite
from statistics import median

from bpkit.core.finding import Finding
from bpkit.diagnostics.diagnostic import Diagnostic
from bpkit.diagnostics.instruments import OutputError, TimeLag
from bpkit.diagnostics.learning import learned_nothing, learned_something
from bpkit.diagnostics.sample import Sample

WINDOW = 10  # samples, to vanish
AFTER = 100  # steps: the start of a run that is slow to begin with is over by then
IN_A_ROW = 5  # samples, to explode
VANISHED = 1e-4  # of lag 0 at the largest lag: what is to be learned there is lost in what lies nearer
EXPLODED = 1e3
DEAD = 0.5  # a factor below which ten steps leave a thousandth


class TimeLags(Diagnostic):
    """Decay or growth of the gradient over time lag inside `RNN`, `LSTM` and `GRU`, and over cells' calls."""

    needs = (TimeLag, OutputError)

    def __init__(self) -> None:
        self._layers: dict[str, _Layer] = {}
        self._seen: dict[str, Finding] = {}

    def observe(self, sample: Sample) -> Iterable[Finding]:
        """A finding of each kind at most; `"info"` once the run learns after all."""
        now = {name: sample.by_module(TimeLag, name) for name in TimeLag.columns}
        for layer, first in now["first"].items():
            figures = {name: values[layer] for name, values in now.items()}
            if figures["steps"] > 0 and first != 0:
                self._layers.setdefault(layer, _Layer()).add(figures)
        if learned_something(sample):
            for finding in self._seen.values():
                yield replace(finding, severity="info")
            self._seen = {}
            return
        exploding = {layer: each for layer, each in self._layers.items() if each.explodes}
        vanishing = {layer: each for layer, each in self._layers.items() if each.vanishes}
        if exploding:
            yield self._finding(sample, "exploding", exploding)
        if vanishing and sample.step >= AFTER and learned_nothing(sample):
            yield self._finding(sample, "vanishing", vanishing)

    def columns(self, sample: Sample) -> Mapping[str, Mapping[str, float]]:
        """What a step back in time multiplies the gradient by, and after how many a thousandth is left."""
        return {
            "time lag decay": sample.by_module(TimeLag, "factor"),
            "time lag memory": sample.by_module(TimeLag, "memory"),
        }

    def _finding(self, sample: Sample, kind: str, layers: Mapping[str, _Layer]) -> Finding:
        worst = (min if kind == "vanishing" else max)(layers, key=lambda layer: layers[layer].ratio)
        last = layers[worst].last
        self._seen[kind] = sample.finding(
            kind,
            layers,
            {
                "factor_per_time_step": last["factor"],
                "time_steps": last["steps"],
                "memory_in_time_steps": last["memory"],
                "last_lag_over_first": layers[worst].ratio,
            },
            _advice(sample, kind, worst, last),
            severity="critical" if layers[worst].burst else "warning",
        )
        return self._seen[kind]


@dataclass
class _Layer:
    """What the last samples say of a layer; `burst`: numbers have ended after it grew."""

    ratios: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    last: Mapping[str, float] = field(default_factory=dict)
    burst: bool = False

    def add(self, figures: Mapping[str, float]) -> None:
        ratio = figures["last"] / figures["first"]
        if isfinite(ratio):
            self.ratios.append(ratio)
            self.last = figures
        elif self.ratios:
            self.burst |= self.ratios[-1] > EXPLODED

    @property
    def ratio(self) -> float:
        return median(self.ratios) if self.ratios else 1.0

    @property
    def vanishes(self) -> bool:
        return len(self.ratios) == WINDOW and self.ratio < VANISHED

    @property
    def explodes(self) -> bool:
        recent = list(self.ratios)[-IN_A_ROW:]
        return self.burst or (len(recent) == IN_A_ROW and min(recent) > EXPLODED)


def _advice(sample: Sample, kind: str, layer: str, figures: Mapping[str, float]) -> str:
    """What fits the layer's class; its biases by their places."""
    cell = sample.network.kinds.get(layer, "")
    weight = "weight_hh" if any(each in cell for each in ("RNN", "LSTM", "GRU")) else "weight"
    factor = f"every time step of '{layer}' multiplies the gradient by {figures['factor']:.2g}"
    if kind == "exploding":
        return (
            f"{factor}: torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0) before the step, start its "
            f"{weight} with torch.nn.init.orthogonal_, and let the gradient go back fewer steps (detach the "
            "state between pieces of the sequence)"
        )
    reach = f"{factor}, so that it reaches {figures['memory']:.0f} of {figures['steps']:.0f} steps back"
    orthogonal = f"start its {weight} with torch.nn.init.orthogonal_"
    if "LSTM" in cell or "GRU" in cell:
        gate = f"{'forget' if 'LSTM' in cell else 'update'} gate at 1 or more ({_gate(sample, layer, cell)})"
        closed = ", and look whether the gates saturate" if figures["factor"] < DEAD else ""
        return f"{reach}: start the bias of its {gate}, {orthogonal}{closed}"
    return f"{reach}: {orthogonal} (or torch.nn.init.eye_ with ReLU), or use LSTM or GRU in its place"


def _gate(sample: Sample, layer: str, cell: str) -> str:
    """The part of the bias that keeps the state: the second of its parts."""
    suffix = "" if cell.endswith("Cell") else "_l0"
    shapes = {info.name: info.shape for info in sample.network.parameters}
    name = f"weight_hh{suffix}"
    rows = shapes.get(name if layer == "model" else f"{layer}.{name}", (0,))[0]
    size = rows // (4 if "LSTM" in cell else 3)
    return f"bias_ih{suffix}[{size}:{2 * size}]" if size else f"the second part of bias_ih{suffix}"
