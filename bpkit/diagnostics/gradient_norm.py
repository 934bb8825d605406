"""Gradient norm by layer, before and after clipping, and how it slopes over depth."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median

from bpkit.diagnostics.depth import elasticities, trend
from bpkit.diagnostics.diagnostic import Board, Diagnostic
from bpkit.diagnostics.instruments import AccumulatedNorm, GradientHistogram, GradientNorm, WeightNorm
from bpkit.diagnostics.sample import Sample


class GradientNorms(Diagnostic):
    """Puts the norms on the map, their totals, extremes and slope on the board; finds nothing."""

    needs = (GradientNorm, AccumulatedNorm, WeightNorm, GradientHistogram)

    def columns(self, sample: Sample) -> Mapping[str, Mapping[str, float]]:
        """Norms by layer: at the step, before clipping, of weights; now and then histograms of |∂L/∂W|."""
        return {
            "gradient norm": sample.by_layer(GradientNorm),
            "gradient norm before clipping": sample.by_layer(AccumulatedNorm),
            "weight norm": sample.by_layer(WeightNorm),
            **GradientHistogram.by_layer(sample),
        }

    def write(self, sample: Sample, board: Board) -> None:
        """`gradients/…`: six curves, whatever the size of the model."""
        norms = sample.by_layer(GradientNorm)
        if not norms:
            return
        figures = {
            "total after clipping": sample.total(GradientNorm),
            "total before clipping": sample.total(AccumulatedNorm),
            "smallest layer": min(norms.values()),
            "median layer": median(norms.values()),
            "largest layer": max(norms.values()),
        }
        slope = trend(elasticities(sample))
        if slope is not None:
            figures["decades from output to input"] = -slope.decades
        for name, value in figures.items():
            board.add_scalar(f"gradients/{name}", value, sample.step)
