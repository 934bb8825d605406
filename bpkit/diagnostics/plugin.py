"""The built-in diagnostics, handed in through the hook that every plugin uses."""

from __future__ import annotations

from collections.abc import Iterable

from bpkit.core.spec import DiagnosticSpec
from bpkit.diagnostics.audit import Audit
from bpkit.diagnostics.curvature import Curvature
from bpkit.diagnostics.dead import Dead
from bpkit.diagnostics.diagnostic import Diagnostic
from bpkit.diagnostics.direction import Directions
from bpkit.diagnostics.disconnected import Disconnected
from bpkit.diagnostics.divergence import Divergence
from bpkit.diagnostics.exploding import Exploding
from bpkit.diagnostics.frozen import Frozen
from bpkit.diagnostics.gain import Gain
from bpkit.diagnostics.gradient_norm import GradientNorms
from bpkit.diagnostics.mode import Mode
from bpkit.diagnostics.noise import Noise
from bpkit.diagnostics.nonfinite import Nonfinite
from bpkit.diagnostics.overfit import Overfit
from bpkit.diagnostics.plateau import Plateau
from bpkit.diagnostics.saturated import Saturated
from bpkit.diagnostics.scale import Scale
from bpkit.diagnostics.stuck import Stuck
from bpkit.diagnostics.time_lag import TimeLags
from bpkit.diagnostics.update_ratio import UpdateRatio
from bpkit.diagnostics.vanishing import Vanishing
from bpkit.diagnostics.zero import Zero
from bpkit.plugins.hookspecs import hookimpl

# Name, class, kinds of finding, summary. Those that only measure have no kinds.
_DEFAULT: tuple[tuple[str, type[Diagnostic], tuple[str, ...], str], ...] = (
    ("gradient_norm", GradientNorms, (), "gradient norm by layer, before and after clipping"),
    ("gain", Gain, (), "by how much each module multiplies the error on its way back"),
    ("direction", Directions, (), "cosine of the gradient with the last one and with the momentum"),
    ("vanishing", Vanishing, ("vanishing",), "the gradient dies out on its way to the input"),
    (
        "exploding",
        Exploding,
        ("exploding",),
        "the gradient grows over depth, over time, or beyond the weights",
    ),
    ("nonfinite", Nonfinite, ("nonfinite",), "NaN or infinity has reached the optimizer, and who made it"),
    ("update_ratio", UpdateRatio, ("update_ratio",), "how far a step moves the weights"),
    (
        "saturated",
        Saturated,
        ("saturated",),
        "bounded activations at their bounds; what activations look like",
    ),
    ("dead", Dead, ("dead",), "rectified units that no case comes through, told from rare ones"),
    ("disconnected", Disconnected, ("disconnected",), "parameters that no gradient reaches"),
    ("frozen", Frozen, ("frozen",), "parameters that require no gradient, by mistake"),
    ("stuck", Stuck, ("stuck",), "parameters with a gradient that do not move"),
    ("zero", Zero, ("zero",), "weights whose start leaves nothing to tell units apart"),
    ("plateau", Plateau, ("plateau",), "the loss stays where it began"),
    ("divergence", Divergence, ("divergence",), "the loss rises and stays up; a record of spikes"),
    ("overfit", Overfit, ("overfit",), "training and validation loss come apart"),
    ("scale", Scale, ("scale",), "inputs, half-precision errors and loss scales out of proportion"),
    ("mode", Mode, ("mode",), "modules in the wrong mode"),
    ("noise", Noise, ("noise",), "gradient noise scale; batches whose gradient is chance"),
    (
        "time_lag",
        TimeLags,
        ("vanishing", "exploding"),
        "the gradient dies out, or grows, over the time steps of a recurrent layer",
    ),
)

_OPT_IN: tuple[tuple[str, type[Diagnostic], tuple[str, ...], str], ...] = (
    ("audit", Audit, ("audit",), "hand-written backwards against autograd, on the batch at hand"),
    ("curvature", Curvature, ("divergence",), "the Hessian's spectrum; sharpness against the learning rate"),
)


@hookimpl
def bpkit_diagnostics() -> Iterable[DiagnosticSpec]:
    """What every watch looks for, and what a watch that names it does."""
    return [
        DiagnosticSpec(
            name=name, diagnostic=diagnostic, kinds=kinds, summary=summary, default=table is _DEFAULT
        )
        for table in (_DEFAULT, _OPT_IN)
        for name, diagnostic, kinds, summary in table
    ]
