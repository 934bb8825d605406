"""What samples are measured with: one class a quantity, of parameters, of modules or of the model."""

from bpkit.diagnostics.instruments.activations import Activations
from bpkit.diagnostics.instruments.elements import Direction, GradientHistogram, Symmetry, Update
from bpkit.diagnostics.instruments.figures import Batch, Figure, Figures, by_rows
from bpkit.diagnostics.instruments.instrument import Instrument
from bpkit.diagnostics.instruments.modes import Modes
from bpkit.diagnostics.instruments.modules import (
    Deltas,
    Finite,
    LossScale,
    OutputError,
    Underflow,
)
from bpkit.diagnostics.instruments.parameters import (
    AccumulatedNorm,
    GradientNorm,
    GradientRate,
    Standing,
    WeightNorm,
)
from bpkit.diagnostics.instruments.per_sample import PerSample
from bpkit.diagnostics.instruments.sentinel import Sentinel
from bpkit.diagnostics.instruments.time_lag import TimeLag
from bpkit.diagnostics.instruments.units import Units

__all__ = [
    "AccumulatedNorm",
    "Activations",
    "Batch",
    "Deltas",
    "Direction",
    "Figure",
    "Figures",
    "Finite",
    "GradientHistogram",
    "GradientNorm",
    "GradientRate",
    "Instrument",
    "LossScale",
    "Modes",
    "OutputError",
    "PerSample",
    "Sentinel",
    "Standing",
    "Symmetry",
    "TimeLag",
    "Underflow",
    "Units",
    "Update",
    "WeightNorm",
    "by_rows",
]
