"""Nonfinite: a gradient that is NaN or infinite has reached the optimizer.

Critical at the first sample: one step spreads it to every weight that the layer feeds. Steps that a loss
scaler skips never get here: there overflow is how the scale is found.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import isfinite, isnan

from bpkit.diagnostics.diagnostic import Diagnostic
from bpkit.diagnostics.finding import Finding
from bpkit.diagnostics.instruments import GradientNorm, WeightNorm
from bpkit.diagnostics.sample import Sample


class Nonfinite(Diagnostic):
    """NaN or infinity among the gradients; the layers are those of the first such sample."""

    needs = (GradientNorm, WeightNorm)

    def __init__(self) -> None:
        self._layers: tuple[str, ...] = ()

    def observe(self, sample: Sample) -> Iterable[Finding]:
        """A finding for every sample with a norm that is not finite."""
        norms = sample.by_layer(GradientNorm)
        bad = tuple(layer for layer, norm in norms.items() if not isfinite(norm))
        if not bad:
            return
        weights = sum(not isfinite(norm) for norm in sample.by_layer(WeightNorm).values())
        self._layers = self._layers or bad
        yield Finding(
            kind="nonfinite",
            severity="critical",
            layers=self._layers,
            step=sample.step,
            last_step=sample.step,
            evidence={
                "layers_nonfinite": len(bad),
                "layers_nan": sum(isnan(norm) for norm in norms.values()),
                "layers": len(norms),
                "layers_with_nonfinite_weights": weights,
            },
            advice=_advice(sample, bad, weights),
        )


def _advice(sample: Sample, bad: tuple[str, ...], weights: int) -> str:
    if weights:
        return (
            "weights are no longer finite: go back to a checkpoint from before, and lower the learning rate "
            "or clip the gradient (torch.nn.utils.clip_grad_norm_) from there"
        )
    if len(bad) == len(sample.by_layer(GradientNorm)):
        return (
            "every layer has it and the weights are finite, so it comes from the batch or the loss: look for "
            "NaN in the data, log(0), a division by 0 or sqrt at 0"
        )
    return (
        f"gradients below '{bad[-1]}' are finite above it: look at what follows '{bad[-1]}' in the forward "
        "(log, sqrt, division, exp); torch.autograd.set_detect_anomaly(True) names the line"
    )
