"""Gradient norm by layer, as curves in TensorBoard: one tag a layer, or one tensor for many layers."""

from __future__ import annotations

from statistics import median

import torch

from bpkit.diagnostics.diagnostic import Board, Diagnostic
from bpkit.diagnostics.instruments import AccumulatedNorm, GradientNorm, WeightNorm
from bpkit.diagnostics.sample import Sample

# A tag a layer up to here: TensorBoard draws one chart a tag, and thousands bring it to its knees.
LAYERS = 64
STATISTICS = ("gradient norm", "weight norm")


class GradientNorms(Diagnostic):
    """Writes `gradient_norm/<layer>` and the totals before and after clipping; finds nothing."""

    needs = (GradientNorm, AccumulatedNorm, WeightNorm)

    def write(self, sample: Sample, board: Board) -> None:
        """One scalar a layer, or `bpkit/layers` [layers × statistics] and its minimum, median, maximum."""
        norms = sample.by_layer(GradientNorm)
        if not norms:
            return
        board.add_scalar("gradient_norm_total/at_step", sample.total(GradientNorm), sample.step)
        board.add_scalar("gradient_norm_total/accumulated", sample.total(AccumulatedNorm), sample.step)
        if len(norms) <= LAYERS:
            for layer, value in norms.items():
                board.add_scalar(f"gradient_norm/{layer}", value, sample.step)
            return
        spread = {"min": min(norms.values()), "median": median(norms.values()), "max": max(norms.values())}
        for name, value in spread.items():
            board.add_scalar(f"gradient_norm/{name}", value, sample.step)
        weights = sample.by_layer(WeightNorm)
        rows = [[norms[layer], weights[layer]] for layer in norms]
        board.add_tensor("bpkit/layers", torch.tensor(rows), sample.step)  # torch's writer takes no list
