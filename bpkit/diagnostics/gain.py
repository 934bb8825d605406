"""Gain: by how much each module multiplies the error on its way back, ‖∂L/∂input‖ ÷ ‖∂L/∂output‖."""

from __future__ import annotations

from collections.abc import Mapping

from bpkit.diagnostics.diagnostic import Diagnostic
from bpkit.diagnostics.instruments import Deltas
from bpkit.diagnostics.sample import Sample


class Gain(Diagnostic):
    """Puts the gain on the map: a chain of gains below 1 vanishes, above 1 explodes. Finds nothing itself."""

    needs = (Deltas,)

    def columns(self, sample: Sample) -> Mapping[str, Mapping[str, float]]:
        """Gain by module, by the paths through the module alone; none for a module fed with data."""
        out, back = sample.by_module(Deltas, "out"), sample.by_module(Deltas, "in")
        return {"gain": {name: back[name] / out[name] for name in out if out[name] > 0 and back[name] >= 0}}
