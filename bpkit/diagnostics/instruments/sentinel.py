"""`Sentinel`: looks for NaN at every step, at next to no cost, and runs the step again to see where it began.

A value that is not finite goes through every matrix product on its way back, so the parameters at the input
side show it, wherever it began: before each step a few of their gradients are summed. On the CPU that is
read at once, while the weights are still as they were: the batch is run once more on a copy of the model,
with the same random numbers, and every module's tensors are looked at. On an accelerator reading would wait
for the device; there the sums are read a step later, and the report says when, not where.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils import _pytree

from bpkit.diagnostics.aside import generators_kept, side_copy
from bpkit.diagnostics.flow import Flow, tensors
from bpkit.diagnostics.hooks import Handle, ModuleHook
from bpkit.diagnostics.instruments.figures import Value, to_host
from bpkit.diagnostics.instruments.instrument import Instrument
from bpkit.diagnostics.instruments.modules import Deltas, Finite
from bpkit.diagnostics.network import unwrapped
from bpkit.diagnostics.sample import Provenance
from bpkit.diagnostics.subject import Subject

LOOKED_AT = 2  # gradients at either end, of parameters with
ELEMENTS = 1 << 16  # elements at most


class Sentinel(Instrument):
    """Of each module on a step that was run again, the columns of `Finite` and `Deltas`; None otherwise.

    `order` counts the modules in the order in which they were called.

    All NaN where the alarm came a step late, and the weights have it already.
    """

    of = "modules"
    light = True
    columns = ("order", *Finite.columns, *Deltas.columns)
    provenance = Provenance("before step", reduced=False)

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self._call: tuple[Any, Any, Tensor] | None = None
        self._found: Sequence[Value] | None = None
        self._waiting: list[tuple[Tensor, torch.cuda.Event]] = []
        first = next(iter(subject.parameters), None)
        self._rerun = first is not None and first.device.type == "cpu"
        self._over = False
        self._watched: list[nn.Parameter] | None = None
        self._hooks: list[Handle] = []
        if subject.hookable:
            hook = ModuleHook(self._remember)
            self._hooks.append(subject.model.register_forward_pre_hook(hook, prepend=True, with_kwargs=True))

    def _remember(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Keep the batch until the next one comes, and the state of the random numbers; no copy of either."""
        if torch.is_grad_enabled() and not torch.compiler.is_compiling() and self._rerun and not self._over:
            self._call = (*_pytree.tree_map_only(Tensor, torch.detach, (args, kwargs)), torch.get_rng_state())

    def alarmed(self, optimizer: Optimizer) -> bool:
        """Whether a gradient is not finite that is about to be used. Once is enough: later ones spread it."""
        if self._over or getattr(optimizer, "found_inf", None) is not None:
            return False
        if self._watched is None:
            self._watched = self._first()
        sums = [
            each.grad.sum() for each in self._watched if each.grad is not None and not each.grad.is_sparse
        ]
        if not sums:
            return False
        if not self._rerun:
            return self._late(sums)
        if all(bool(each.isfinite()) for each in sums):
            self._call = None  # the batch is not kept through an evaluation
            return False
        self._over = True
        if self._call is not None and not self.subject.sharded:
            with suppress(Exception):  # a model that cannot be copied or run again: the report says less
                self._found = _run_again(self.subject.model, *self._call)
        self._call = None
        return True

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
        for hook in self._hooks:
            hook.remove()
        self._call = None

    def _first(self) -> list[nn.Parameter]:
        """Small parameters at both ends of the model: one is the input side, whichever was written first.

        None of a sharded model: an alarm on one rank alone would have it wait for the others' norms.
        """
        if self.subject.sharded:
            return []
        small = [
            each
            for each in self.subject.parameters
            if each.requires_grad and not nn.parameter.is_lazy(each) and 0 < each.numel() <= ELEMENTS
        ]
        return list(dict.fromkeys([*small[:LOOKED_AT], *small[-LOOKED_AT:]]))


def _run_again(model: nn.Module, args: Any, kwargs: Any, generator: Tensor) -> list[Value]:
    """What was not finite, by module, in a forward and backward of a copy of the model.

    The backward starts from random numbers, for what the loss gave is gone: what it shows that is not
    finite is the model's own doing.
    """
    twin = Subject(side_copy(unwrapped(model)))
    twin.model.zero_grad()
    instruments = (Finite(twin), Deltas(twin))
    flow = Flow(twin, instruments)
    flow.arm()
    for each in instruments:
        each.arm()
    with generators_kept(()), torch.enable_grad():
        torch.set_rng_state(generator)
        outputs = [each for each in tensors(twin.model(*args, **kwargs)) if each.requires_grad]
        ends = [each for each in outputs if bool(each.detach().isfinite().all())]
        if ends:
            torch.autograd.backward(ends, [torch.randn_like(each) for each in ends])
    flow.on_backward()
    flow.disarm()
    lived = frozenset(flow.lived | {1})  # the one call, whether or not a gradient came back
    order = {place: float(number) for number, place in enumerate(flow.order)}
    batches = [each.read(lived) for each in instruments]
    values = [each.finish(numbers) for each, numbers in zip(batches, to_host(batches), strict=True)]
    nothing = (-1.0,) * 2
    return [
        None
        if pair == (None, None)
        else (order.get(place, -1.0), *(pair[0] or nothing), *(pair[1] or nothing))
        for place, pair in enumerate(zip(*values, strict=True))
    ]
