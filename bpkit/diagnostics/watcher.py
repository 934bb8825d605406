"""`Watcher`: takes samples while somebody's loop trains, and keeps what the diagnostics find in them.

Nobody has to call it at a step: torch's optimizer hooks tell where one begins and ends. On a sampled step
the instruments that the diagnostics need enqueue their figures, one copy brings all of them to the
host, and each diagnostic reads the sample. On every other step a number is counted and compared, and one
small gradient is looked at for NaN.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar
from weakref import finalize

import torch
from torch import Tensor

from bpkit.core.errors import BpkitError
from bpkit.core.finding import Finding
from bpkit.diagnostics.diagnostic import Board, Diagnostic
from bpkit.diagnostics.hooks import Handle, on_step
from bpkit.diagnostics.instruments.instrument import Instrument
from bpkit.diagnostics.ledger import Ledger
from bpkit.diagnostics.log import Log
from bpkit.diagnostics.losses import Losses
from bpkit.diagnostics.others import trains_others
from bpkit.diagnostics.probe import Probe
from bpkit.diagnostics.ranks import Ranks
from bpkit.diagnostics.recorder import Recorder
from bpkit.diagnostics.sample import Sample
from bpkit.diagnostics.schedule import Pace, Schedule
from bpkit.diagnostics.subject import Subject
from bpkit.diagnostics.summary import summary
from bpkit.tensorboard import Writer, record

logger = logging.getLogger("bpkit")

Kind = TypeVar("Kind", bound=Instrument)

VERDICTS = 10  # samples from one writing of unchanged verdicts to the next: a running run is seen to run


class Watcher:
    """What `watch` returns; a context manager that closes itself.

    Attributes:
        findings: verdicts so far, one of a kind, in the order of their first steps.
        sample: the last sampled step, None before the first.
        step: steps that the optimizer has taken. A run that is resumed sets it to where it goes on.
        schedule: of full samples: `every` as it has become, and the `seconds` and `samples` so far.
        light_schedule: the same of light ones.
        subject: the model as the instruments see it.
        optimizer: the one whose steps are counted, None until it is known.
        closure: gives the loss of the last batch, with a graph; None but in the Trainer, or as one sets it.
        logdir: where the logs go, None where nothing is written.
        recorder: the last steps, if a diagnostic keeps them.
        left_out: diagnostics that do not look any more, or never could, by class name, and why.
    """

    def __init__(
        self,
        subject: Subject,
        optimizer: torch.optim.Optimizer | None,
        diagnostics: Sequence[Diagnostic],
        schedule: Schedule,
        *,
        board: Board | None = None,
        own: Writer | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.sample: Sample | None = None
        self.schedule, self.light_schedule = schedule, schedule.companion()
        self.subject = subject
        self.optimizer = optimizer
        self.closure: Callable[[], Tensor] | None = None
        board = own or board
        self.logdir: Path | None = getattr(board, "logdir", None)
        self._log = None if board is None else Log(board, own=own is not None)
        self._ranks = ranks or Ranks()
        self._diagnostics = list(diagnostics)
        needs = dict.fromkeys(need for each in diagnostics for need in (*each.needs, *each.wants))
        self._probe = Probe(subject, needs)
        self._ledger = Ledger()
        self._losses = Losses()
        self.recorder: Recorder | None = None
        self.left_out: dict[str, str] = {}
        self._unlooked = 3  # losses whose graphs are looked at
        self._seconds = 0.0
        self._pace = Pace(schedule)
        self._closed = False
        self._step = 0
        self._step_hooks: list[Handle] = []
        self._finish = finalize(self, own.close) if own is not None else None  # also when Python ends
        try:
            for each in self._diagnostics:
                each.attach(self)
        except BaseException:
            self.close()
            raise
        self._step_hooks = on_step(optimizer, subject.model.parameters, self._before_step, self._after_step)
        self.step = 0

    @property
    def findings(self) -> list[Finding]:
        return self._ledger.findings

    @property
    def step(self) -> int:
        return self._step

    @step.setter
    def step(self, step: int) -> None:
        self._step = step
        self._probe.disarm()
        self._look_ahead()

    @property
    def seconds(self) -> float:
        """Time that watching has taken."""
        return self.schedule.seconds + self.light_schedule.seconds

    @property
    def share(self) -> float:
        """The same as a part of the time since the watch began."""
        return self.schedule.share + self.light_schedule.share

    def loss(self, value: Tensor | float) -> None:
        """The loss of the step just taken; a tensor is read with the next sample, not now."""
        if self._unlooked and isinstance(value, Tensor):
            self._unlooked -= 1
            if trains_others(value, self.subject.parameters):
                self._probe.history.alone = False
        self._losses.add(self._step, value)
        if self._losses.full and not self._probe.armed:
            self._probe.arm(light=True)  # they are read before one is lost

    def validation(self, value: Tensor | float) -> None:
        """The loss on data that is not trained on, read as `loss` is."""
        self._losses.add_validation(self._step, value)

    def batch(self, ids: Any) -> None:
        """What the step that comes trains on, such as the indices of its cases: for the record of a spike."""
        if self.recorder is not None:
            ids = ids.tolist() if isinstance(ids, Tensor) else ids
            self.recorder.note(self._step + 1, batch=ids)

    def summary(self) -> str:
        """The findings, with where, when, evidence and advice; a line for a healthy run and for each note."""
        return summary(self._step, self.findings, self.left_out, looking=bool(self._diagnostics))

    def close(self) -> None:
        """Take all hooks away and finish the logs; findings stay."""
        if self._closed:
            return
        self._closed = True
        self._probe.close()
        for handle in self._step_hooks:
            handle.remove()
        self._step_hooks = []
        for diagnostic in tuple(self._diagnostics):
            self._run(diagnostic, lambda each: each.close())
        if self._log is not None:
            self._log.losses(*self._losses.take())
        self._write_verdicts(finished=True)
        if self._log is not None:
            self._log.close()
        self._log = self.closure = None

    def instrument(self, kind: type[Kind]) -> Kind:
        """The instrument of a kind that some diagnostic needs, for what it holds beside its figures."""
        return self._probe.instrument(kind)

    def _before_step(self, optimizer: torch.optim.Optimizer) -> None:
        start = time.perf_counter()
        if not self._probe.armed or self._probe.light:
            self._probe.alarmed(optimizer)  # arms for a full sample, if so
        if self._probe.armed:
            self._probe.before_step(optimizer)
        self._seconds += time.perf_counter() - start

    def _after_step(self, optimizer: torch.optim.Optimizer) -> None:
        self._step += 1
        self.optimizer = optimizer
        start = time.perf_counter()
        sampled = self._probe.armed
        if sampled:
            self._take(optimizer)
        if self._closed:
            return
        light = self._probe.light
        self._look_ahead()
        self._seconds += time.perf_counter() - start
        if sampled:
            schedule = self.light_schedule if light else self.schedule
            schedule.took(self._step, self._pace.cost(self._seconds + self._probe.took()))
            self._seconds = 0.0
        self._pace.step(sampled=sampled)

    def _look_ahead(self) -> None:
        """Arm for the next step, if it is to be sampled."""
        if self.schedule.due(self._step + 1):
            self._probe.arm()
        elif self.light_schedule.due(self._step + 1):
            self._probe.arm(light=True)

    def _take(self, optimizer: torch.optim.Optimizer) -> None:
        if self._probe.alone:
            logger.error(
                "bpkit: not watched: the parameters are sharded, and norms of a part would mislead; "
                "call bpkit.watch on every rank"
            )
            self.close()
            return
        self._probe.after_step(optimizer)
        self.sample = self._probe.sample(self._step, *self._losses.take())
        self._probe.disarm()
        self._read(self.sample)

    def _read(self, sample: Sample) -> None:
        """Hand the sample to every diagnostic; one that breaks is left out, the training goes on."""
        columns: dict[str, dict[str, float]] = {}
        changed = False
        log = None if self._probe.light else self._log
        for diagnostic in tuple(self._diagnostics):
            missing = [each.__name__ for each in diagnostic.needs if not sample.has(each)]
            if missing and not self._probe.light:
                self.leave_out(diagnostic, f"{' and '.join(missing)} could not be measured")
            if missing:
                continue
            changed |= self._run(diagnostic, lambda each: each.observe(sample))
            if log is not None and diagnostic in self._diagnostics:
                with self._leaving_out(diagnostic):
                    diagnostic.write(sample, log.board)
                    for name, values in diagnostic.columns(sample).items():
                        columns.setdefault(name, {}).update(values)
        if log is not None:
            histograms = {name: columns.pop(name) for name in record.BINS if name in columns}
            log.layers(sample, columns, histograms)
        if self._log is not None:
            self._log.losses(sample.losses, sample.validations)
        if changed:
            self._write_changes()
        elif log is not None and self.schedule.samples % VERDICTS == 0:
            self._write_verdicts()

    def report(self, diagnostic: Diagnostic, finding: Finding) -> None:
        """Note what a diagnostic finds between two samples, such as that no step is taken any more."""
        if self._run(diagnostic, lambda _: [finding]):
            self._write_changes()

    def _run(self, diagnostic: Diagnostic, reads: Callable[[Diagnostic], Iterable[Finding]]) -> bool:
        """Note what a diagnostic finds; whether anything is new or has become graver."""
        changed = False
        with self._leaving_out(diagnostic):
            for finding in reads(diagnostic):
                news = self._ledger.note(type(diagnostic).__name__, finding)
                if news is not None:
                    changed = True
                    self._say(news)
        return changed

    @contextmanager
    def _leaving_out(self, diagnostic: Diagnostic) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.leave_out(diagnostic, str(error) if isinstance(error, BpkitError) else repr(error))

    def leave_out(self, diagnostic: Diagnostic, why: str) -> None:
        """Ask a diagnostic no more, and say so: now, in the summary and in the logs."""
        self._diagnostics.remove(diagnostic)
        name = type(diagnostic).__name__
        self.left_out[name] = why
        logger.warning("bpkit: diagnostic %s left out from step %d on: %s", name, self._step, why)

    def _say(self, finding: Finding) -> None:
        if finding.severity != "info" and self._ranks.leads:
            logger.warning("bpkit: %s", str(finding).splitlines()[0])
        if self._log is not None:
            self._log.say(finding)

    def _write_changes(self) -> None:
        self._write_verdicts()
        if self._log is not None:
            self._log.board.flush()  # a run that is killed has its verdicts on disk

    def _write_verdicts(self, *, finished: bool = False) -> None:
        if self._log is not None:
            cost = {"seconds": self.seconds, "share": self.share, "samples": self.schedule.samples}
            told = {**cost, "finished": finished, "left_out": self.left_out}
            self._log.verdicts(self._step, self.findings, told)

    def __repr__(self) -> str:
        found = ", ".join(f"{each.kind} ({each.severity})" for each in self.findings) or "no findings"
        return f"<Watcher of {type(self.subject.model).__name__}: step {self._step}, {found}>"

    def __enter__(self) -> Watcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
