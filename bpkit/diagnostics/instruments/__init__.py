"""What samples are measured with: one class a quantity, of parameters, of modules or of the model."""

from bpkit.diagnostics.instruments.instrument import Figure, Figures, Instrument
from bpkit.diagnostics.instruments.modules import Activations, Deltas, Finite, OutputError, Units
from bpkit.diagnostics.instruments.parameters import (
    AccumulatedNorm,
    Direction,
    GradientHistogram,
    GradientNorm,
    GradientRate,
    SilentRows,
    Standing,
    Update,
    WeightNorm,
)

__all__ = [
    "AccumulatedNorm",
    "Activations",
    "Deltas",
    "Direction",
    "Figure",
    "Figures",
    "Finite",
    "GradientHistogram",
    "GradientNorm",
    "GradientRate",
    "Instrument",
    "OutputError",
    "SilentRows",
    "Standing",
    "Units",
    "Update",
    "WeightNorm",
]
