"""`Log`: what a watch writes for TensorBoard's tab and for `bpkit doctor`; the format is `record`'s."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from bpkit.core.finding import Finding
from bpkit.diagnostics.diagnostic import Board
from bpkit.diagnostics.network import Network
from bpkit.diagnostics.sample import Sample
from bpkit.tensorboard import Writer, record

Columns = Mapping[str, Mapping[str, float]]


class Log:
    """Writes one tensor [layers × statistics] a sample, and all verdicts whenever one changes.

    Args:
        board: a `Writer`, or torch's `SummaryWriter`, which takes the tensors without their layout: then
            the Text tab has the verdicts, and the tab Gradients stays empty.
    """

    def __init__(self, board: Board) -> None:
        self._board = board
        self._layout: record.Layout | None = None
        self._layouts = 0
        self._network: Network | None = None

    def layers(self, sample: Sample, columns: Columns, histograms: Columns) -> None:
        """The statistics of this sample: a row for each module and each layer that has parameters."""
        new = self._layout is None or not set(columns) <= set(self._layout.columns)
        if new or sample.network is not self._network:
            self._lay_out(sample, tuple(columns))
        assert self._layout is not None
        self._add(record.LAYERS, self._layout, columns, sample.step)
        if histograms:
            self._add(record.HISTOGRAMS, replace(self._layout, columns=record.BINS), histograms, sample.step)

    def verdicts(self, step: int, findings: Sequence[Finding], cost: Mapping[str, Any]) -> None:
        """All findings as of this step."""
        if isinstance(self._board, Writer):
            verdicts = record.Verdicts(step, [asdict(each) for each in findings], **cost)
            self._board.add_record(record.FINDINGS, verdicts.to_json(), step)

    def _add(self, tag: str, layout: record.Layout, columns: Columns, step: int) -> None:
        rows = [
            [columns.get(column, {}).get(name, record.ABSENT) for column in layout.columns]
            for name in layout.layers
        ]
        if self._layouts > 1:
            tag = f"{tag}/{self._layouts}"
        if isinstance(self._board, Writer):
            self._board.add_tensor(tag, rows, step, content=layout.to_json())
        else:
            self._board.add_tensor(tag, torch.tensor(rows), step)

    def _lay_out(self, sample: Sample, columns: tuple[str, ...]) -> None:
        names = rows(sample)
        known = self._layout
        if known is None or known.layers != names or not set(columns) <= set(known.columns):
            self._layouts += 1
            classes = tuple(sample.network.kinds.get(name, "") for name in names)
            self._layout = record.Layout(names, classes, columns, sample.network.model)
        self._network = sample.network


def rows(sample: Sample) -> tuple[str, ...]:
    """Modules in the order of the forward, where it was seen; those never called keep their neighbours."""
    modules = [module.name for module in sample.network.modules]
    called, waiting, found = set(sample.called), 0, []
    for place in sample.called:
        for earlier in range(waiting, place):
            if earlier not in called:
                found.append(modules[earlier])
        waiting = max(waiting, place + 1)
        found.append(modules[place])
    return tuple(dict.fromkeys([*found, *modules, *sample.layers]))
