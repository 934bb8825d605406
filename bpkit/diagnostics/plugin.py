"""The built-in diagnostics, handed in through the hook that every plugin uses."""

from __future__ import annotations

from collections.abc import Iterable

from bpkit.core.spec import DiagnosticSpec
from bpkit.diagnostics.exploding import Exploding
from bpkit.diagnostics.gradient_norm import GradientNorms
from bpkit.diagnostics.nonfinite import Nonfinite
from bpkit.diagnostics.vanishing import Vanishing
from bpkit.plugins.hookspecs import hookimpl


@hookimpl
def bpkit_diagnostics() -> Iterable[DiagnosticSpec]:
    """Gradient norm by layer, and the verdicts that rest on it."""
    return [
        DiagnosticSpec(
            name="gradient_norm",
            diagnostic=GradientNorms,
            kinds=(),
            summary="gradient norm by layer, before and after clipping",
        ),
        DiagnosticSpec(
            name="vanishing",
            diagnostic=Vanishing,
            kinds=("vanishing",),
            summary="the gradient dies out on its way to the input",
        ),
        DiagnosticSpec(
            name="exploding",
            diagnostic=Exploding,
            kinds=("exploding",),
            summary="the gradient grows over depth, over time, or beyond the weights",
        ),
        DiagnosticSpec(
            name="nonfinite",
            diagnostic=Nonfinite,
            kinds=("nonfinite",),
            summary="NaN or infinity has reached the optimizer",
        ),
    ]
