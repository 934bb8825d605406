"""Stuck: a parameter with a gradient that does not move.

No optimizer holds it, its group has a rate of zero, or its dtype is too coarse: in bfloat16 the next number
after w is w/256 away, and a smaller update is rounded to none. Whether it moves is measured, not looked up,
so that two optimizers with a part each, and groups that a schedule has at zero for a while, are judged by
what they do.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite

from bpkit.core.finding import Finding
from bpkit.diagnostics.diagnostic import Diagnostic
from bpkit.diagnostics.instruments import GradientNorm, Standing, Update, WeightNorm
from bpkit.diagnostics.learning import learned_nothing
from bpkit.diagnostics.sample import Sample

SAMPLES = 8  # in a row: a schedule that begins at zero is over by then; or
STEPS = 40  # with three samples in them
MOVED = 0.02  # share of the elements with a gradient that still counts as standing still
MOVED_COARSE = 0.3  # of a parameter in half precision, whose small elements move and the others do not
LEARNED = 0.5  # a run that has come so far may well end with its rates at zero


@dataclass
class _State:
    """Of one parameter: its last norm, and for how many samples it has stood still."""

    norm: float = float("nan")
    still: int = 0
    since: int = 0

    def stuck(self, step: int) -> bool:
        """Whether it has stood still for long enough."""
        return self.still >= SAMPLES or (self.still >= 3 and step - self.since >= STEPS)


class Stuck(Diagnostic):
    """Layers with parameters that have a gradient and stand still."""

    needs = (Standing, Update, WeightNorm, GradientNorm)

    def __init__(self) -> None:
        self._states: dict[str, _State] = {}

    def observe(self, sample: Sample) -> Iterable[Finding]:
        """A finding once a parameter stood still for eight samples; of information once it moves again."""
        stuck: dict[str, str] = {}
        moving = 0
        columns = (sample[Standing], sample[Update], sample[WeightNorm], sample[GradientNorm])
        for info, standing, update, weight, gradient in zip(sample.network.parameters, *columns, strict=True):
            trainable, _, held, rate = standing
            state = self._states.setdefault(info.name, _State())
            if not trainable or not gradient or not isfinite(gradient) or weight is None or update is None:
                state.still = 0
                continue
            moved = MOVED_COARSE if info.coarse else MOVED
            still = update[1] <= moved * update[2] and (held > 0 or weight == state.norm)
            if not state.still:
                state.since = sample.step
            state.norm, state.still = weight, state.still + 1 if still else 0
            if state.stuck(sample.step):
                small = "rounding" if info.coarse else "too small"
                why = "held by no optimizer" if not held else "rate" if rate == 0 else small
                # In float32 next to nothing is rounded away but the last crumbs of a run that has converged.
                if why != "too small" or learned_nothing(sample):
                    stuck.setdefault(info.layer, why)
            moving += not still
        if not stuck:
            return
        progress = sample.history.progress
        over = not moving and progress is not None and progress > LEARNED
        layer, why = next(iter(stuck.items()))
        yield sample.finding(
            "stuck",
            stuck,
            {"layers_stuck": len(stuck), "parameters_moving": moving},
            _ADVICE[why].format(layer=layer),
            severity="info" if over else "warning",
        )


_ADVICE = {
    "held by no optimizer": (
        "'{layer}' has a gradient, but no optimizer moves it. Add its parameters to one; a layer that was "
        "made or replaced after the optimizer is not in it"
    ),
    "rate": "the learning rate of '{layer}' is 0. Look at its parameter group and at the schedule",
    "too small": (
        "the updates of '{layer}' are too small for float32 to show: hardly any gradient reaches it. Look at "
        "what its gradient passes on the way (a squashing activation, a clip, a small loss), or raise its "
        "learning rate"
    ),
    "rounding": (
        "the updates of '{layer}' are rounded away: its dtype has no number so near. Keep the weights in "
        "float32 and compute under torch.autocast, raise the learning rate, or round stochastically"
    ),
}
