"""`Probe`: takes samples of a model, with the instruments that somebody needs and no others."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import Variable
from torch.optim import Optimizer

from bpkit.diagnostics.flow import Flow
from bpkit.diagnostics.history import History
from bpkit.diagnostics.hooks import Handle, on_gradients
from bpkit.diagnostics.instruments.figures import Batch, batch, to_host
from bpkit.diagnostics.instruments.instrument import Instrument
from bpkit.diagnostics.instruments.modules import OutputError
from bpkit.diagnostics.ranks import Ranks
from bpkit.diagnostics.sample import Provenance, Reading, Sample
from bpkit.diagnostics.subject import Subject

Kind = TypeVar("Kind", bound=Instrument)
Losses = Sequence[tuple[int, Tensor | float]]


class Probe:
    """The instruments at one model. A sampled step is `arm`, `before_step`, `after_step`, `sample`.

    A light sample knows the order of the layers from the last full one.

    Args:
        subject: what is measured.
        needs: the instruments.
    """

    def __init__(self, subject: Subject, needs: Iterable[type[Instrument]]) -> None:
        self.subject = subject
        self._instruments = {need: need(subject) for need in needs}
        self._light = {need: each for need, each in self._instruments.items() if need.light}
        self._active = self._instruments
        self._permanent = [
            each for each in self._instruments.values() if type(each).alarmed is not Instrument.alarmed
        ]
        self._flow = Flow(subject, list(self._instruments.values()))
        self._hooks: list[Handle] = []
        self._arrived: dict[int, None] = {}  # in order
        self._backward = -1
        self._compiled = subject.compiled
        self._last_order: tuple[int, ...] = ()
        self._last_called: tuple[int, ...] = ()
        self._seconds = 0.0
        self.history = History()
        self.armed = False

    def arm(self, *, light: bool = False) -> None:
        """The step that begins now is sampled: listen to its modules and gradients, unless it is light."""
        self.disarm()
        self.armed = True
        self._active = self._light if light else self._instruments
        if light:
            return
        self.subject.look_again()
        self._arrived.clear()
        self._backward = -1
        self._hooks = on_gradients(self.subject.parameters, self._on_gradient)
        self._flow.arm()
        self._tell("arm")

    @property
    def light(self) -> bool:
        """Whether the sample that is being taken is one."""
        return self._active is self._light

    @cached_property
    def alone(self) -> bool:
        """Whether other ranks hold parts of the parameters and do not watch: norms would wait for them.

        First asked when a backward, which takes all ranks, is over: by then those that watch have begun to.
        """
        return self.subject.sharded and not Ranks.others_watch()

    def disarm(self) -> None:
        """Take the hooks on modules and parameters away."""
        self.armed = False
        self._flow.disarm()
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def instrument(self, kind: type[Kind]) -> Kind:
        """The instrument of a kind that is needed."""
        found = self._instruments[kind]
        assert isinstance(found, kind)
        return found

    def took(self) -> float:
        """Seconds that hooks in forward and backward have taken since this was last asked."""
        seconds, self._seconds, self._flow.seconds = self._seconds + self._flow.seconds, 0.0, 0.0
        return seconds

    def close(self) -> None:
        """Take every hook away, the permanent ones as well."""
        self.disarm()
        self._flow.close()
        for instrument in self._instruments.values():
            instrument.close()

    def alarmed(self, optimizer: Optimizer) -> bool:
        """Whether a step that was not due must be sampled after all: what its forward showed is lost."""
        alarms = []
        for each in self._permanent:  # each has to look
            if each in self._flow.failed:
                continue
            with self._flow.leaving_out(each):
                alarms.append(each.alarmed(optimizer))
        if not any(alarms):
            return False
        self.arm()
        return True

    def before_step(self, optimizer: Optimizer) -> None:
        """The optimizer's step begins."""
        if self.alone:
            return
        if _skipped(optimizer):
            self.disarm()
            return
        self.subject.find_scaler()
        if not self.light and self.subject.look_again():
            self.arm()
        self._tell("before_step", optimizer)

    def after_step(self, optimizer: Optimizer) -> None:
        """The optimizer's step is over."""
        self._tell("after_step", optimizer)

    def sample(self, step: int, losses: Losses = (), validations: Losses = ()) -> Sample:
        """What this step showed; one copy from the device, which waits for it.

        Args:
            step: its number.
            losses: training losses with their steps, since the last sample.
            validations: validation losses likewise.
        """
        values, readings = self._read([*losses, *validations])
        trained, validated = values[: len(losses)], values[len(losses) :]
        self.history.add_losses(trained)
        for at, value in validated:
            self.history.validation.add(at, value)
        if OutputError in readings and (size := readings[OutputError].values[0]) is not None:
            self.history.error.add(step, size)
        if not self.light:
            if self._flow.fed:
                self.history.alone = False
            self._last_order, self._last_called = self._order(), tuple(self._flow.order)
        return Sample(
            step=step,
            network=self.subject.network,
            readings=readings,
            loss=trained[-1][1] if trained else None,
            loss_step=trained[-1][0] if trained else None,
            validation=validated[-1][1] if validated else None,
            losses=tuple(trained),
            validations=tuple(validated),
            history=self.history,
            order=self._last_order,
            called=self._last_called,
        )

    def _read(self, given: Losses) -> tuple[list[tuple[int, float]], dict[type[Instrument], Reading]]:
        """What was given, and what the instruments have, as numbers."""
        lived = frozenset(self._flow.lived)
        losses = batch([value for _, value in given])
        read: dict[type[Instrument], Batch] = {}
        readings: dict[type[Instrument], Reading] = {}
        with torch.no_grad():
            for need, instrument in self._active.items():
                if instrument in self._flow.failed:
                    continue
                with self._flow.leaving_out(instrument):
                    read[need] = batch(instrument.read(lived))
            own, *others = to_host([losses, *read.values()])
        for (need, figures), numbers in zip(read.items(), others, strict=True):
            instrument = self._instruments[need]
            with self._flow.leaving_out(instrument):
                values = tuple(figures.finish(numbers))
                readings[need] = Reading(values, self._of(instrument.provenance), need.columns)
        return [
            (step, _number(value)) for (step, _), value in zip(given, losses.finish(own), strict=True)
        ], readings

    def _of(self, provenance: Provenance) -> Provenance:
        """What it comes to here: without a loss scale nothing is scaled, and a single rank is all of them."""
        return replace(
            provenance,
            scaled=provenance.scaled and self.subject.scaler is not None,
            reduced=provenance.reduced or Ranks.processes() == 1,
        )

    def _tell(self, method: str, *arguments: Any) -> None:
        self._flow.tell(self._active.values(), method, *arguments)

    def _on_gradient(self, index: int, grad: Tensor) -> None:
        self._arrived[index] = None
        backward = torch._C._current_graph_task_id()
        if backward != self._backward:
            self._backward = backward
            Variable._execution_engine.queue_callback(self._nearly_over)

    def _nearly_over(self) -> None:
        """Ask once more to be called: DDP and FSDP, who reduce the gradients, may have asked after us."""
        Variable._execution_engine.queue_callback(self._over)

    def _over(self) -> None:
        self._backward = -1
        if self.armed and not self.alone:
            start = time.perf_counter()
            self._flow.on_backward()
            self._tell("on_backward")
            self._seconds += time.perf_counter() - start

    def _order(self) -> tuple[int, ...]:
        """Parameters from the input to the output: gradients reach the last layer first.

        Empty, for registration order, when none was seen to arrive, and for a compiled model, whose
        gradients arrive all at once.
        """
        if not self._arrived or self._compiled:
            return ()
        count = len(self.subject.parameters)
        silent = [index for index in range(count) if index not in self._arrived]
        return (*reversed([each for each in self._arrived if each < count]), *silent)


def _number(value: tuple[float, ...] | float | None) -> float:
    assert isinstance(value, float | int)
    return float(value)


def _skipped(optimizer: Optimizer) -> bool:
    """Whether the scaler has told a fused step to change nothing; its hooks run all the same."""
    found = getattr(optimizer, "found_inf", None)
    return isinstance(found, Tensor) and bool(found)
