"""Nonfinite: a gradient that is NaN or infinite has reached the optimizer.

Critical at the first sample: one step spreads it to every weight that the layer feeds. Steps that a loss
scaler skips never get here: there overflow is how the scale is found.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import isfinite, isnan

from bpkit.core.finding import Finding
from bpkit.diagnostics.diagnostic import Diagnostic
from bpkit.diagnostics.instruments import GradientNorm, WeightNorm
from bpkit.diagnostics.sample import Sample


class Nonfinite(Diagnostic):
    """NaN or infinity among the gradients, as the first such sample had it: later ones only spread it."""

    needs = (GradientNorm, WeightNorm)

    def __init__(self) -> None:
        self._first: Finding | None = None

    def observe(self, sample: Sample) -> Iterable[Finding]:
        """A finding for every sample with a norm that is not finite."""
        norms = sample.by_layer(GradientNorm)
        bad = tuple(layer for layer, norm in norms.items() if not isfinite(norm))
        if not bad:
            return
        if self._first is None:
            self._first = self._finding(sample, norms, bad)
        yield replace(self._first, last_step=sample.step)

    def _finding(self, sample: Sample, norms: Mapping[str, float], bad: tuple[str, ...]) -> Finding:
        weights = sum(not isfinite(norm) for norm in sample.by_layer(WeightNorm).values())
        return Finding(
            kind="nonfinite",
            severity="critical",
            layers=bad,
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
            "every layer has it and the weights are finite, so the loss had it: look for NaN in the batch, "
            "for log, sqrt or division at 0 and exp of large numbers in the forward and in the loss, and, "
            "after steps that were exploding, for plain overflow"
        )
    return (
        f"gradients below '{bad[-1]}' are finite above it: look at what follows '{bad[-1]}' in the forward "
        "(log, sqrt, division, exp); torch.autograd.set_detect_anomaly(True) names the line"
    )
