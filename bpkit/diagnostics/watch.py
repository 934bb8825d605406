"""`watch`: verdicts on the gradients of any model, from one line beside its loop.

    watcher = bpkit.watch(model, optimizer, logdir="runs/a")
    for inputs, target in batches:
        ...
        optimizer.step()
        watcher.loss(loss)      # optional
    print(watcher.summary())

Nothing is called per step: torch's optimizer hooks tell where one begins and ends. On a sampled step
the instruments that the diagnostics need enqueue their figures, one copy brings all of them to the
host, and each diagnostic reads the sample. On every other step a number is counted and compared, and one
small gradient is looked at for NaN.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from bpkit.core.errors import BpkitError
from bpkit.core.finding import Finding
from bpkit.diagnostics.diagnostic import Board, Diagnostic
from bpkit.diagnostics.hooks import innermost, on_step
from bpkit.diagnostics.instruments.instrument import Instrument
from bpkit.diagnostics.ledger import Ledger
from bpkit.diagnostics.log import Log
from bpkit.diagnostics.others import trains_others
from bpkit.diagnostics.probe import Probe
from bpkit.diagnostics.ranks import Ranks
from bpkit.diagnostics.recorder import Recorder
from bpkit.diagnostics.sample import Sample
from bpkit.diagnostics.schedule import Schedule
from bpkit.diagnostics.subject import Subject
from bpkit.plugins.registry import Registry, registry
from bpkit.tensorboard import Writer, record

logger = logging.getLogger("bpkit")

Kind = TypeVar("Kind", bound=Instrument)

PENDING = 1024  # losses that wait for the next sample, at most
VERDICTS = 10  # samples from one writing of unchanged verdicts to the next: a running run is seen to run


def watch(
    model: nn.Module,
    optimizer: Any = None,
    *,
    logdir: str | Path | None = None,
    writer: Board | None = None,
    scaler: GradScaler | None = None,
    every: int = 10,
    budget: float = 0.03,
    diagnostics: Iterable[str | Diagnostic] | None = None,
) -> Watcher:
    """Watch a model while something else trains it; the numbers of the training stay as they are.

    Args:
        model: any module, plain, converted, compiled or wrapped for data parallelism.
        optimizer: whose step ends a step; a wrapper that holds one as `.optimizer` will do. Without one,
            the first optimizer that steps with a parameter of `model`.
        logdir: directory for TensorBoard's logs.
        writer: in place of `logdir`, a `bpkit.tensorboard.Writer` or torch's `SummaryWriter`, which the
            caller closes.
        scaler: mixed precision's `GradScaler`, so that norms can be told without its scale; the one that
            takes the optimizer's steps is found without being named.
        every: steps from one sample to the next, after the first ten.
        budget: share of the run's time that samples may take in the long run; beyond it, `every` doubles.
        diagnostics: names of registered ones, or objects; by default all registered as default.

    Of a distributed run every rank watches, and the first one writes.

    Returns:
        A `Watcher`: `findings`, `sample`, `summary()`, `close()`.

    Raises:
        BpkitError: an argument that cannot be; an unknown diagnostic, with the nearest name.
    """
    if not isinstance(model, nn.Module):
        raise BpkitError(f"watch: model must be a torch.nn.Module, not {type(model).__name__}")
    if logdir is not None and writer is not None:
        raise BpkitError("watch: give logdir or writer, not both")
    if not (isinstance(every, int) and isinstance(budget, (int, float)) and every >= 1 and 0 < budget <= 1):
        raise BpkitError(
            f"watch: every must be at least 1 and budget in (0, 1], not {every!r} and {budget!r}"
        )
    if scaler is not None and not isinstance(scaler, GradScaler):
        raise BpkitError(f"watch: scaler must be a torch.amp.GradScaler, not {scaler!r}")
    if writer is not None and not callable(getattr(writer, "add_scalar", None)):
        raise BpkitError(f"watch: writer must be a Writer or torch's SummaryWriter, not {writer!r}")
    inner = None if optimizer is None else innermost(optimizer)
    diagnosing = chosen(diagnostics, registry())
    ranks = Ranks()
    own = Writer(logdir) if logdir is not None and ranks.leads else None
    schedule = Schedule(every, budget, ranks)
    return Watcher(
        Subject(model, scaler),
        inner,
        diagnosing,
        schedule,
        board=writer if ranks.leads else None,
        own=own,
        ranks=ranks,
    )


def chosen(diagnostics: Iterable[str | Diagnostic] | None, known: Registry) -> list[Diagnostic]:
    """Diagnostics from names in `known` or objects; None takes all registered as default.

    Raises:
        BpkitError: an unknown name; something else than a name or a `Diagnostic`.
    """
    if diagnostics is None:
        return [spec.diagnostic() for spec in known.diagnostics if spec.default]
    if isinstance(diagnostics, str) or not isinstance(diagnostics, Iterable):
        raise BpkitError(f"watch: diagnostics must be a list, such as [{diagnostics!r}], not {diagnostics!r}")
    found = [known.diagnostics[each].diagnostic() if isinstance(each, str) else each for each in diagnostics]
    for each in found:
        if not isinstance(each, Diagnostic):
            raise BpkitError(
                f"watch: diagnostics must be names or bpkit.diagnostics.Diagnostic objects, not {each!r}"
            )
    return found


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
        self._board, self._own = own or board, own
        self.logdir: Path | None = getattr(self._board, "logdir", None)
        self._log = None if self._board is None else Log(self._board)
        self._ranks = ranks or Ranks()
        self._diagnostics = list(diagnostics)
        needs = dict.fromkeys(need for each in diagnostics for need in (*each.needs, *each.wants))
        self._probe = Probe(subject, needs)
        self._ledger = Ledger()
        self._losses: deque[tuple[int, Tensor | float]] = deque(maxlen=PENDING)
        self._validations: deque[tuple[int, Tensor | float]] = deque(maxlen=PENDING)
        self.recorder: Recorder | None = None
        self._unlooked = 3  # losses whose graphs are looked at
        self._seconds = 0.0
        self._closed = False
        for each in self._diagnostics:
            each.attach(self)
        self._step_hooks = on_step(optimizer, subject.parameters, self._before_step, self._after_step)
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
        self._losses.append((self._step, value.detach() if isinstance(value, Tensor) else float(value)))

    def validation(self, value: Tensor | float) -> None:
        """The loss on data that is not trained on, read as `loss` is."""
        self._validations.append((self._step, value.detach() if isinstance(value, Tensor) else float(value)))

    def batch(self, ids: Any) -> None:
        """What the step that comes trains on, such as the indices of its cases: for the record of a spike."""
        if self.recorder is not None:
            ids = ids.tolist() if isinstance(ids, Tensor) else ids
            self.recorder.note(self._step + 1, batch=ids)

    def summary(self) -> str:
        """The findings, with where, when, evidence and advice; a line for a healthy run and for each note."""
        if not self._step:
            return "nothing seen yet: the optimizer has taken no step"
        grave = [each for each in self.findings if each.severity != "info"]
        notes = [each for each in self.findings if each.severity == "info"]
        head = [] if grave else [f"healthy: nothing found in {self._step} steps"]
        return "\n".join([*head, *map(str, grave), *(f"note: {_line(each)}" for each in notes)])

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
            self._run(diagnostic, lambda each: each.close(), self._step)
        self._write_verdicts(finished=True)
        if self._own is not None:
            self._own.close()
        self._board = self._own = self._log = self.closure = None

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
            schedule.took(self._step, self._seconds + self._probe.took())
            self._seconds = 0.0

    def _look_ahead(self) -> None:
        """Arm for the next step, if it is to be sampled."""
        if self.schedule.due(self._step + 1):
            self._probe.arm()
        elif self.light_schedule.due(self._step + 1):
            self._probe.arm(light=True)

    def _take(self, optimizer: torch.optim.Optimizer) -> None:
        if self._step == 1 and self.subject.sharded and not self._ranks.all_watch():
            logger.error(
                "bpkit: not watched: the parameters are sharded, and norms of a part would mislead; "
                "call bpkit.watch on every rank"
            )
            self.close()
            return
        self.optimizer = optimizer
        self._probe.after_step(optimizer)
        self.sample = self._probe.sample(self._step, tuple(self._losses), tuple(self._validations))
        self._losses.clear()
        self._validations.clear()
        self._probe.disarm()
        self._read(self.sample)

    def _read(self, sample: Sample) -> None:
        """Hand the sample to every diagnostic; one that breaks is left out, the training goes on."""
        columns: dict[str, dict[str, float]] = {}
        changed = False
        for diagnostic in tuple(self._diagnostics):
            if not all(map(sample.has, diagnostic.needs)):
                continue
            changed |= self._run(diagnostic, lambda each: each.observe(sample), sample.step)
            if self._board is not None and not self._probe.light and diagnostic in self._diagnostics:
                with self._leaving_out(diagnostic, sample.step):
                    diagnostic.write(sample, self._board)
                    for name, values in diagnostic.columns(sample).items():
                        columns.setdefault(name, {}).update(values)
        if self._log is not None and not self._probe.light:
            histograms = {name: columns.pop(name) for name in record.BINS if name in columns}
            self._log.layers(sample, columns, histograms)
        if self._own is not None:  # who brings a writer logs the losses as they like
            for tag, value in (("loss/train", sample.loss), ("loss/validation", sample.validation)):
                if value is not None:
                    self._own.add_scalar(tag, value, sample.step)
        if changed or (not self._probe.light and self.schedule.samples % VERDICTS == 0):
            self._write_verdicts()

    def _run(
        self, diagnostic: Diagnostic, reads: Callable[[Diagnostic], Iterable[Finding]], step: int
    ) -> bool:
        """Note what a diagnostic finds; whether anything is new or has become graver."""
        changed = False
        with self._leaving_out(diagnostic, step):
            for finding in reads(diagnostic):
                news = self._ledger.note(type(diagnostic).__name__, finding)
                if news is not None:
                    changed = True
                    self._say(news)
        return changed

    @contextmanager
    def _leaving_out(self, diagnostic: Diagnostic, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._diagnostics.remove(diagnostic)
            name = type(diagnostic).__name__
            logger.warning("bpkit: diagnostic %s left out from step %d on: %r", name, step, error)

    def _say(self, finding: Finding) -> None:
        if finding.severity != "info" and self._ranks.leads:
            logger.warning("bpkit: %s", str(finding).splitlines()[0])
        if self._board is not None:
            self._board.add_text("bpkit/verdicts", finding.markdown(), finding.last_step)

    def _write_verdicts(self, *, finished: bool = False) -> None:
        if self._log is not None:
            cost = {"seconds": self.seconds, "share": self.share, "samples": self.schedule.samples}
            self._log.verdicts(self._step, self.findings, {**cost, "finished": finished})

    def __enter__(self) -> Watcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _line(finding: Finding) -> str:
    return f"{finding.kind} in {finding.where}, {finding.since}: {finding.advice}"
