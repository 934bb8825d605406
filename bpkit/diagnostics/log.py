"""`Log`: what a watch writes for TensorBoard's tab and for `bpkit doctor`; the format is `record`'s."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

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
        own: nobody else writes there: losses are logged as well, and it is closed at the end.

    Attributes:
        board: the same, for what diagnostics write.
    """

    def __init__(self, board: Board, *, own: bool) -> None:
        self.board = board
        self._own = own
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
        if isinstance(self.board, Writer):
            verdicts = record.Verdicts(step, [asdict(each) for each in findings], **cost)
            self.board.add_record(record.FINDINGS, verdicts.to_json(), step)

    def losses(self, *series: Iterable[tuple[int, Tensor | float]]) -> None:
        """Losses at their own steps: the last of those since the sample before, and each validation."""
        if self._own:  # who brings a writer logs the losses as they like
            train, validation = (list(each) for each in series)
            for step, value in train[-1:]:
                self.board.add_scalar("loss/train", value, step)
            for step, value in validation:
                self.board.add_scalar("loss/validation", value, step)

    def say(self, finding: Finding) -> None:
        """A verdict that is new or has become graver, for TensorBoard's Text tab."""
        self.board.add_text(f"bpkit/verdicts/{finding.kind}", finding.markdown(), finding.last_step)

    def close(self) -> None:
        """Nothing more comes."""
        if self._own:
            self.board.close()

    def _add(self, tag: str, layout: record.Layout, columns: Columns, step: int) -> None:
        rows = [
            [columns.get(column, {}).get(name, record.ABSENT) for column in layout.columns]
            for name in layout.layers
        ]
        if self._layouts > 1:
            tag = f"{tag}/{self._layouts}"
        if isinstance(self.board, Writer):
            self.board.add_tensor(tag, rows, step, content=layout.to_json())
        else:
            self.board.add_tensor(tag, torch.tensor(rows), step)

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
