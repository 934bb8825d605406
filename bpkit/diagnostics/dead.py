"""Dead: rectified units whose input is below zero for every case, so that no gradient reaches their weights.

A unit that fires rarely is alive: its inputs come near zero. A dead one's stay below by more than their own
spread, for every case of a window of samples (`Units`). A tenth or two of a layer are usual, and cost width;
half of it, or a third from one sample to the next, is a fault: a rate, a bias or a spike has pushed them over
(Lu et al., "Dying ReLU and initialization", 2019).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from bpkit.core.finding import Finding
from bpkit.diagnostics.diagnostic import Diagnostic
from bpkit.diagnostics.instruments import Units
from bpkit.diagnostics.sample import Sample
from bpkit.diagnostics.saturated import feeding

SHARE = 0.5
AT_ONCE = 0.3  # from one sample to the next
CRITICAL = 0.9
IN_A_ROW = 2


class Dead(Diagnostic):
    """Layers of which half is dead, or which lost a third."""

    needs = (Units,)

    def __init__(self) -> None:
        self._start: dict[str, float] = {}
        self._last: dict[str, float] = {}
        self._fell: set[str] = set()
        self._row: dict[str, int] = {}
        self._seen: Finding | None = None

    def observe(self, sample: Sample) -> Iterable[Finding]:
        """A finding once a layer was so in two samples in a row; of information once units are back."""
        shares = sample.by_module(Units, "dead")
        where = []
        for layer, share in shares.items():
            if share != share:
                continue
            self._start.setdefault(layer, share)
            if share - self._last.get(layer, share) >= AT_ONCE:
                self._fell.add(layer)
            elif share < AT_ONCE:
                self._fell.discard(layer)
            self._last[layer] = share
            bad = share >= SHARE or layer in self._fell
            self._row[layer] = self._row.get(layer, 0) + 1 if bad else 0
            if self._row[layer] >= IN_A_ROW:
                where.append(layer)
        if not where:
            if self._seen is not None:
                yield replace(self._seen, severity="info", last_step=sample.step)
                self._seen = None
            return
        worst = max(where, key=shares.__getitem__)
        sources = feeding(sample)
        self._seen = sample.finding(
            "dead",
            dict.fromkeys(name for layer in where for name in (*sources.get(layer, ()), layer)),
            {
                "share_dead": shares[worst],
                "share_at_start": self._start[worst],
                "units": sample.by_module(Units, "units")[worst],
                "cases": sample.by_module(Units, "cases")[worst],
                "layers": len(where),
            },
            _advice(worst, sources.get(worst, ()), worst in self._fell),
            severity="critical" if shares[worst] >= CRITICAL else "warning",
        )
        yield self._seen

    def columns(self, sample: Sample) -> Mapping[str, Mapping[str, float]]:
        """Share of dead units by rectifier."""
        shares = sample.by_module(Units, "dead")
        return {"dead": {name: share for name, share in shares.items() if share == share}}


def _advice(layer: str, sources: tuple[str, ...], fell: bool) -> str:
    source = sources[0] if sources else layer
    if fell:
        return (
            f"the units of '{source}' died during the run: a step moved them too far. Lower the learning "
            "rate or warm it up, clip the gradient (torch.nn.utils.clip_grad_norm_), and go back to a "
            "checkpoint from before"
        )
    return (
        f"the dead units of '{source}' were never above zero. Start its bias at 0 and its weights with "
        "torch.nn.init.kaiming_normal_(weight, nonlinearity='relu'), normalise its inputs, or use "
        "LeakyReLU or GELU"
    )
