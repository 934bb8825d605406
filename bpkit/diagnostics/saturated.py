"""Saturated: a bounded activation stands at its bounds, where its slope lets next to no gradient through.

An output counts as saturated where the slope is a twentieth of the steepest or less (tanh beyond ±0.975).
Glorot & Bengio (2010) watch for the same. The last activation of a model may saturate: that is certainty; and
so may others once next to nothing of the loss is left.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from statistics import median

from bpkit.core.finding import Finding
from bpkit.diagnostics.diagnostic import Diagnostic
from bpkit.diagnostics.instruments import Activations
from bpkit.diagnostics.sample import Sample

WINDOW = 5  # samples
MOST = 0.8  # of a layer's outputs: what is left is too little whatever the run does
MUCH = 0.5  # and with this a verdict wants a run that does not learn
LEARNS = 0.2
GONE = 0.9  # of the first loss: what saturates behind that has been fitted


class Saturated(Diagnostic):
    """Layers whose outputs stand at the bounds, in the median of a window of samples."""

    needs = (Activations,)

    def __init__(self) -> None:
        self._recent: deque[Mapping[str, float]] = deque(maxlen=WINDOW)
        self._seen = False

    def observe(self, sample: Sample) -> Iterable[Finding]:
        """A finding once the window agrees."""
        shares = _hidden(sample)
        self._recent.append(shares)
        if len(self._recent) < WINDOW:
            return
        usual = {
            layer: median(known)
            for layer in shares
            if len(known := [each[layer] for each in self._recent if layer in each]) == WINDOW
        }
        progress = sample.history.progress
        limit = MUCH if progress is not None and progress < LEARNS and sample.step >= 30 else MOST
        where = [layer for layer, share in usual.items() if share >= limit]
        if not where:
            return
        fitted = not self._seen and progress is not None and progress > GONE
        self._seen |= not fitted
        worst = max(where, key=usual.__getitem__)
        sources = feeding(sample)
        yield sample.finding(
            "saturated",
            dict.fromkeys(name for layer in where for name in (*sources.get(layer, ()), layer)),
            {
                "share_saturated": usual[worst],
                "layers": len(where),
                "input_rms": sample.by_module(Activations, "input").get(worst, float("nan")),
            },
            _advice(sample, where[0], sources.get(where[0], ())),
            severity="info" if fitted else "critical" if usual[worst] > 0.98 else "warning",
        )

    def columns(self, sample: Sample) -> Mapping[str, Mapping[str, float]]:
        """What activations look like, by module."""
        found = {
            f"activation {name}": sample.by_module(Activations, name) for name in ("mean", "std", "kurtosis")
        }
        shares = sample.by_module(Activations, "saturated")
        return {
            **found,
            "zeros": sample.by_module(Activations, "zeros"),
            "saturated": {name: share for name, share in shares.items() if share == share},
        }


def feeding(sample: Sample) -> dict[str, tuple[str, ...]]:
    """The layer with parameters that ran last before each module, by module."""
    owners = {info.layer for info in sample.network.parameters}
    found: dict[str, tuple[str, ...]] = {}
    before: tuple[str, ...] = ()
    for place in sample.called:
        name = sample.network.modules[place].name
        if name in owners:
            before = (name,)
        else:
            found[name] = before
    return found


def _hidden(sample: Sample) -> dict[str, float]:
    """Shares by module, without modules that do not saturate and without the model's last."""
    shares = sample.by_module(Activations, "saturated")
    last = sample.network.modules[sample.called[-1]].name if sample.called else None
    return {name: share for name, share in shares.items() if share == share and name != last}


def _advice(sample: Sample, layer: str, sources: tuple[str, ...]) -> str:
    fed = sample.by_module(Activations, "input")
    source = sources[0] if sources else layer
    size = fed.get(source, float("nan"))
    called = [sample.network.modules[place].name for place in sample.called]
    kind = sample.network.kinds.get(layer, "the activation")
    activation = f"{kind} '{layer}'" if sources else "the activation after it"
    first = source == next((name for name in called if name in fed), None)
    if first and size > 3:
        return (
            f"the inputs of '{source}' have a root mean square of {size:.3g}. Bring the data to mean 0 and "
            f"variance 1, or put a normalisation layer first, so that {activation} stays where it has a slope"
        )
    return (
        f"'{source}' drives {activation} to its bounds. Initialise its weights with "
        "torch.nn.init.xavier_uniform_, put BatchNorm or LayerNorm between the two, lower the learning rate "
        "if it is the run that took them there, or use ReLU"
    )
