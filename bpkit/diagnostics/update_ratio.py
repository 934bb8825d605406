"""Update ratio: how far a step moves a layer's weights, relative to their size.

About a thousandth a step is what training runs on; at a millionth the run would take a million steps to
change, at a third the weights are new every few steps. How far is right depends on the optimizer and the
model, so a verdict wants more than the ratio: a run that has had time, and gets nowhere.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from math import sqrt
from statistics import median

from bpkit.core.finding import Finding
from bpkit.diagnostics.diagnostic import Board, Diagnostic
from bpkit.diagnostics.instruments import Standing, Update, WeightNorm
from bpkit.diagnostics.sample import Sample

WINDOW = 8  # samples
SMALL, LARGE = 1e-5, 0.3
AFTER = 60  # steps, by when a run of any optimizer has moved, or is warming up: then its rate still rises
LEARNS = 0.05
EARLY = 5  # steps in which a rate that is far too high shows
BLOW = 0.3  # and the part of the weights that one of them then moves
RECOVERED = 0.5  # of the first loss


class UpdateRatio(Diagnostic):
    """Ratios on the map; a finding where nearly all layers hardly move, or leap, and nothing is learned."""

    needs = (Update, WeightNorm, Standing)

    def __init__(self) -> None:
        self._recent: deque[Mapping[str, float]] = deque(maxlen=WINDOW)
        self._rates: deque[float] = deque(maxlen=WINDOW)
        self._early = 0.0
        self._seen = False

    def observe(self, sample: Sample) -> Iterable[Finding]:
        """A finding once a full window agrees."""
        self._recent.append(ratios(sample))
        if sample.step <= EARLY and self._recent[-1]:
            self._early = max(self._early, median(self._recent[-1].values()))
        self._rates.append(max((rate for rate in sample.column(Standing, "rate") if rate), default=0.0))
        usual = {
            layer: median(known)
            for layer in self._recent[-1]
            if (known := [each[layer] for each in self._recent if layer in each])
        }
        if len(self._recent) < WINDOW or sample.step < AFTER or not usual:
            return
        middle = median(usual.values())
        if (
            sample.history.loss.blew_up
            and self._early > BLOW
            and (sample.history.progress or 0.0) < RECOVERED
        ):
            yield self._finding(sample, usual, self._early, "largest", _lower(self._rates[-1], self._early))
            return
        rising = self._rates[-1] > 1.01 * self._rates[0]
        lost = sample.history.progress is not None and sample.history.progress < LEARNS
        if lost and middle < SMALL and not rising:
            yield self._finding(sample, usual, middle, "smallest", _raise(self._rates[-1], middle))
        elif lost and middle > LARGE:
            yield self._finding(sample, usual, middle, "largest", _lower(self._rates[-1], middle))
        elif self._seen:
            yield self._finding(sample, usual, middle, "median", "the run recovered", info=True)

    def _finding(
        self,
        sample: Sample,
        usual: Mapping[str, float],
        middle: float,
        which: str,
        advice: str,
        *,
        info: bool = False,
    ) -> Finding:
        self._seen = not info
        small = which == "smallest"
        where = [name for name, value in usual.items() if (value <= middle) == small or value == middle]
        return sample.finding(
            "update_ratio",
            where,
            {
                "update_over_weight": middle,
                "learning_rate": self._rates[-1],
                "progress": sample.history.progress or 0.0,
            },
            advice,
            severity="info" if info else "warning",
        )

    def columns(self, sample: Sample) -> Mapping[str, Mapping[str, float]]:
        """‖Δw‖ ÷ ‖w‖ by layer, over its matrices where it has some."""
        return {"update ratio": ratios(sample)}

    def write(self, sample: Sample, board: Board) -> None:
        """`gradients/median update ratio`."""
        values = [*ratios(sample).values()]
        if values:
            board.add_scalar("gradients/median update ratio", median(values), sample.step)


def ratios(sample: Sample) -> dict[str, float]:
    """‖Δw‖ ÷ ‖w‖ by layer: of its matrices, or of its vectors where it has no matrix.

    Zero-initialised weights count as rows of unit length, so that their first step is no leap.
    """
    sample.alike(Update, WeightNorm)
    updates, weights = sample.column(Update, "norm"), sample[WeightNorm]
    infos, trainable = sample.network.parameters, sample.column(Standing, "trainable")
    found = {}
    for layer, indices in sample.layers.items():
        moving = [index for index in indices if trainable[index]]
        matrices = [index for index in moving if infos[index].matrix]
        known = [
            update / (weight or sqrt(infos[index].shape[0] if infos[index].shape else 1))
            for index in matrices or moving
            if (update := updates[index]) is not None and (weight := weights[index]) is not None
        ]
        if known:
            found[layer] = max(known)
    return found


def _raise(rate: float, ratio: float) -> str:
    bound = f", up to about {rate * 1e-3 / ratio:.1g}" if ratio else ""
    return (
        f"a step changes the weights by {ratio:.1g} of their size, where a thousandth is usual, and the loss "
        f"does not move. Raise the learning rate from {rate:.3g} by tens{bound}"
    )


def _lower(rate: float, ratio: float) -> str:
    return (
        f"a step changes the weights by {ratio:.1g} of their size. Lower the learning rate from {rate:.3g} "
        f"to about {rate * 1e-2 / ratio:.1g}, or warm it up"
    )
