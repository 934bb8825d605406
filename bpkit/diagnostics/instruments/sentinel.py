"""`Sentinel`: looks for NaN at every step, at next to no cost, and runs the step again to see where it began.

A value that is not finite goes through every matrix product on its way back, so the parameters at the input
side show it, wherever it began: before each step a few of their gradients are summed. On the CPU that is
read at once, while the weights are still as they were: the batch is run once more on a copy of the model
(`rerun.py`), and every module's tensors are looked at. Where several processes train together it is not: one
rank alone would wait in the forward for the others, and the gradients have to tell. On an accelerator reading
would wait for the device; there the sums are read a step later, and the report says when, not where.

Where a loss scaler skips the steps there is none to look at; `skips.py` sees that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from math import isfinite

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bpkit.diagnostics.instruments.figures import Value
from bpkit.diagnostics.instruments.instrument import Instrument
from bpkit.diagnostics.instruments.rerun import COLUMNS, Call, Calls, Rerun, run_again
from bpkit.diagnostics.instruments.skips import LOWEST, ROW, Skips
from bpkit.diagnostics.ranks import Ranks
from bpkit.diagnostics.sample import Provenance
from bpkit.diagnostics.subject import Subject

LOOKED_AT = 2  # gradients at either end, of parameters with
ELEMENTS = 1 << 16  # elements at most


class Sentinel(Instrument):
    """Of each module on a step that was run again, the columns of `Finite` and `Deltas`; None otherwise.

    `order` counts the modules in the order in which they were called.

    All NaN where the alarm came a step late, and the weights have it already.

    Attributes:
        skipped: called once, when no step is taken for values that are not finite, with what the modules
            show and the loss scale, as far as it is known.
    """

    of = "modules"
    light = True
    columns = COLUMNS
    provenance = Provenance("before step", reduced=False)

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.skipped: Callable[[Sequence[Value], float | None], None] | None = None
        self._found: Sequence[Value] | None = None
        self._waiting: list[tuple[Tensor, torch.cuda.Event]] = []
        first = next(iter(subject.parameters), None)
        self._rerun = first is not None and first.device.type == "cpu"
        self._over = False
        self._watched: list[nn.Parameter] | None = None
        self._skips = Skips(subject, self._ends)
        self._calls = Calls(subject, self._called)

    def alarmed(self, optimizer: Optimizer) -> bool:
        """Whether a gradient is not finite that is about to be used. Once is enough: later ones spread it."""
        if self._over:
            return False
        bad = getattr(optimizer, "found_inf", None)
        if bad is not None:  # the scaler looks, and may skip
            self.subject.find_scaler()
            if isinstance(bad, Tensor) and bad.device.type == "cpu" and not bool(bad):
                self._stepped()
                self._calls.look_inside()
            return False
        calls = self._stepped()
        sums = [each.grad.sum() for each in self._ends() if each.grad is not None and not each.grad.is_sparse]
        if not sums:
            return False
        if not self._rerun:
            return self._late(sums)
        if all(isfinite(abs(each.item())) for each in sums):
            self._calls.look_inside()
            return False
        self._over = True
        again = self._run_again(calls)
        self._found = None if again is None else again.values
        return True

    def _stepped(self) -> list[Call]:
        """A step is taken: the calls that led to it, for a batch is not kept through an evaluation."""
        self._skips.stepped()
        return self._calls.take()

    def _late(self, sums: list[Tensor]) -> bool:
        """The same on an accelerator: what an earlier step enqueued, if it has arrived by now."""
        if sums[0].device.type != "cuda":
            return False
        bad = ~torch.stack([each.float().to(sums[0].device) for each in sums]).isfinite().all()
        host = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(bad, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._waiting.append((host, event))
        while self._waiting and self._waiting[0][1].query():
            if bool(self._waiting.pop(0)[0]):
                self._over = True
                self._found = [(torch.nan,) * len(self.columns)] * len(self.subject.modules)
                return True
        return False

    def before_step(self, optimizer: Optimizer) -> None:
        if not self._over:  # a step that is sampled anyway
            self.alarmed(optimizer)

    def read(self, lived: frozenset[int]) -> Sequence[Value]:
        found, self._found = self._found, None
        count = len(self.subject.modules)
        return found if found is not None and len(found) == count else [None] * count

    def close(self) -> None:
        self._calls.close()
        self._skips.close()
        self.skipped = None

    def _called(self) -> bool:
        """The model is called: whether to keep what it is given. On a device, where there is a suspicion."""
        if self._over:
            return False
        with suppress(Exception):  # in somebody's forward
            row = self._skips.called()
            if row >= ROW and row & (row - 1) == 0:  # at 4, 8, 16: it takes a forward and a backward
                self._look_at_skipped()
        if Ranks.processes() == 1 and (self._rerun or self._skips.suspected):
            return True
        self._calls.take()  # of a suspicion that is over
        return False

    def _look_at_skipped(self) -> None:
        """Tell of it if the forward has NaN, whatever the scale, or the scale has had its chance.

        Infinities alone are a mask, or an overflow: the scale tells.
        """
        again, scale = self._run_again(self._calls.take()), self._skips.scale()
        blameless = scale is not None and scale < LOWEST
        if self.skipped is not None and (blameless or (again is not None and not again.numbers)):
            self._over = True
            self._skips.close()
            nothing: list[Value] = [None] * len(self.subject.modules)
            self.skipped(nothing if again is None else again.values, scale)

    def _run_again(self, calls: Sequence[Call]) -> Rerun | None:
        """The first of those calls that show most; None if none runs, or other ranks may have to join in."""
        again: list[Rerun] = []
        for call in calls if Ranks.processes() == 1 else ():
            with suppress(Exception):  # a model that cannot be copied or run again: the report says less
                again.append(run_again(self.subject, call))
        return max(again, key=lambda each: each.shows, default=None)

    def _ends(self) -> list[nn.Parameter]:
        """Small parameters at both ends of the model: one is the input side, whichever was written first.

        None of a sharded model: an alarm on one rank alone would have it wait for the others' norms.
        """
        if self._watched is None:
            small = [
                each
                for each in self.subject.parameters
                if each.requires_grad and not nn.parameter.is_lazy(each) and 0 < each.numel() <= ELEMENTS
            ]
            ends = [] if self.subject.sharded else [*small[:LOOKED_AT], *small[-LOOKED_AT:]]
            self._watched = list(dict.fromkeys(ends))
        return self._watched
