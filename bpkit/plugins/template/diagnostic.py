"""The example of a diagnostic that `bpkit new-plugin` writes."""

from __future__ import annotations

from collections.abc import Iterable

from bpkit import DiagnosticSpec, Finding, hookimpl
from bpkit.diagnostics import Diagnostic, Sample as RunSample
from bpkit.diagnostics.instruments import GradientNorm


class Dominant(Diagnostic):
    """One layer has nearly all of the gradient: clipping by norm, or one rate for all, starves the rest."""

    needs = (GradientNorm,)
    share = 0.99  # of the squared norm
    patience = 3  # samples in a row

    def __init__(self) -> None:
        self._row: list[str] = []

    def observe(self, sample: RunSample) -> Iterable[Finding]:
        """A finding once the same layer has had its share for long enough."""
        squares = {layer: norm * norm for layer, norm in sample.by_layer(GradientNorm).items()}
        total = sum(squares.values())
        layer = max(squares, key=lambda each: squares[each], default="")
        if len(squares) < 2 or not squares[layer] > self.share * total:
            self._row = []
            return
        self._row = [*self._row, layer] if self._row[-1:] == [layer] else [layer]
        if len(self._row) >= self.patience:
            yield Finding(
                kind="dominant",
                severity="warning",
                layers=(layer,),
                step=sample.step,
                last_step=sample.step,
                evidence={"share": squares[layer] / total},
                advice=f"give '{layer}' a smaller learning rate, or a smaller initial weight",
            )


@hookimpl
def bpkit_diagnostics() -> Iterable[DiagnosticSpec]:
    """The diagnostics, for `bpkit.watch(..., diagnostics=[name])` and the Trainer."""
    return [
        DiagnosticSpec(
            name="mine.dominant",
            diagnostic=Dominant,
            kinds=("dominant",),
            default=False,  # True: part of every watch that names none
            summary="one layer has nearly all of the gradient",
        )
    ]
