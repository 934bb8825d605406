"""`watch`: verdicts on the gradients of any model, from one line beside its loop.

    watcher = bpkit.watch(model, optimizer, logdir="runs/a")
    for inputs, target in batches:
        ...
        optimizer.step()
        watcher.loss(loss)      # optional
    print(watcher.summary())

Nothing is called per step: torch's optimizer hooks tell where one begins and ends. On a sampled step
the instruments that the diagnostics need enqueue their figures, one copy brings all of them to the
host, and each diagnostic reads the sample. On every other step a number is counted and compared.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from bpkit.core.errors import BpkitError
from bpkit.diagnostics.diagnostic import Board, Diagnostic
from bpkit.diagnostics.finding import Finding
from bpkit.diagnostics.hooks import innermost, on_step
from bpkit.diagnostics.probe import Probe
from bpkit.diagnostics.sample import Sample
from bpkit.diagnostics.schedule import Schedule
from bpkit.plugins.registry import Registry, registry
from bpkit.tensorboard import Writer

logger = logging.getLogger("bpkit")


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
        scaler: mixed precision's `GradScaler`, so that norms can be told without its scale.
        every: steps from one sample to the next, after the first ten.
        budget: share of the run's time that samples may take in the long run; beyond it, `every` doubles.
        diagnostics: names of registered ones, or objects; by default all registered as default.

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
    own = Writer(logdir) if logdir is not None else None
    return Watcher(model, inner, diagnosing, Schedule(every, budget), board=writer, own=own, scaler=scaler)


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
        schedule: `every` as it has become, and the `seconds` spent.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        diagnostics: Sequence[Diagnostic],
        schedule: Schedule,
        *,
        board: Board | None = None,
        own: Writer | None = None,
        scaler: GradScaler | None = None,
    ) -> None:
        self.findings: list[Finding] = []
        self.sample: Sample | None = None
        self.schedule = schedule
        self._board, self._own = own or board, own
        self._diagnostics = list(diagnostics)
        needs = dict.fromkeys(need for each in diagnostics for need in each.needs)
        self._probe = Probe(model, needs, scaler)
        self._loss: tuple[Tensor | float | None, int | None] = (None, None)
        self._validation: Tensor | float | None = None
        self._seconds = 0.0
        self._step_hooks = on_step(optimizer, self._probe.parameters, self._before_step, self._after_step)
        self.step = 0

    @property
    def step(self) -> int:
        return self._step

    @step.setter
    def step(self, step: int) -> None:
        self._step = step
        if self.schedule.due(step + 1):
            self._probe.arm()
        else:
            self._probe.disarm()

    def loss(self, value: Tensor | float) -> None:
        """The loss of the step just taken; a tensor is read with the next sample, not now."""
        self._loss = (value.detach() if isinstance(value, Tensor) else value, self._step)

    def validation(self, value: Tensor | float) -> None:
        """The loss on data that is not trained on, read as `loss` is."""
        self._validation = value.detach() if isinstance(value, Tensor) else value

    def summary(self) -> str:
        """The findings, each with where, when, evidence and advice; one line for a healthy run."""
        if not self._step:
            return "nothing seen yet: the optimizer has taken no step"
        if not self.findings:
            return f"healthy: nothing found in {self._step} steps"
        return "\n".join(str(finding) for finding in self.findings)

    def close(self) -> None:
        """Take all hooks away and finish the logs; findings stay."""
        self._probe.disarm()
        for handle in self._step_hooks:
            handle.remove()
        self._step_hooks = []
        if self._own is not None:
            self._own.close()
        self._board = self._own = None

    def _before_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self._probe.armed:
            start = time.perf_counter()
            self._probe.before_step(optimizer)
            self._seconds = time.perf_counter() - start

    def _after_step(self, optimizer: torch.optim.Optimizer) -> None:
        self._step += 1
        if self._probe.armed:
            start = time.perf_counter()
            self._probe.disarm()
            self._probe.after_step(optimizer)
            self.sample = self._probe.sample(self._step, *self._loss, self._validation)
            self._read(self.sample)
            self.schedule.took(self._step, self._seconds + time.perf_counter() - start)
        if self.schedule.due(self._step + 1):
            self._probe.arm()

    def _read(self, sample: Sample) -> None:
        """Hand the sample to every diagnostic; one that breaks is left out, the training goes on."""
        for diagnostic in tuple(self._diagnostics):
            try:
                for finding in diagnostic.observe(sample):
                    self._note(finding)
                if self._board is not None:
                    diagnostic.write(sample, self._board)
            except Exception as error:
                self._diagnostics.remove(diagnostic)
                name = type(diagnostic).__name__
                logger.warning("bpkit: diagnostic %s left out from step %d on: %r", name, sample.step, error)
        if self._own is not None:  # who brings a writer logs the losses as they like
            for tag, value in (("loss/train", sample.loss), ("loss/validation", sample.validation)):
                if value is not None:
                    self._own.add_scalar(tag, value, sample.step)

    def _note(self, finding: Finding) -> None:
        """Keep one finding of a kind, and say it where it is new or has become worse."""
        kinds = [each.kind for each in self.findings]
        if finding.kind in kinds:
            place = kinds.index(finding.kind)
            earlier = self.findings[place]
            self.findings[place] = finding = finding.after(earlier)
            if not finding.worse_than(earlier):
                return
        else:
            self.findings.append(finding)
        if finding.severity != "info":
            logger.warning("bpkit: %s", str(finding).splitlines()[0])
        if self._board is not None:
            self._board.add_text("bpkit/verdicts", finding.markdown(), finding.last_step)

    def __enter__(self) -> Watcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
