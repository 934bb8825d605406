"""What the model was last called with, and a second run of it on a copy, all of whose modules are seen."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from bpkit.diagnostics.aside import generators_kept, own_copy, side_copy, tensors_within
from bpkit.diagnostics.flow import Flow
from bpkit.diagnostics.hooks import Handle, ModuleHook
from bpkit.diagnostics.instruments.figures import Value, to_host
from bpkit.diagnostics.instruments.modules import Deltas, Finite
from bpkit.diagnostics.nested import tensors
from bpkit.diagnostics.network import unwrapped
from bpkit.diagnostics.subject import Subject

KEPT = 8  # calls: of parts of the model, or with parts of the batch
LOOKS = 4  # steps in which the parts are looked for that are called, each a level deeper
COLUMNS = ("order", *Finite.columns, *Deltas.columns)
INFINITE, NAN = 1.0, 2.0  # in the columns of `Finite`, where a mask is told from what is wrong


@dataclass(frozen=True)
class Call:
    """What a module was called with, the generator and the autocast of that moment."""

    module: nn.Module
    args: Any
    kwargs: Any
    generator: Tensor
    autocast: tuple[str, torch.dtype] | None


@dataclass(frozen=True)
class Rerun:
    """What a second run showed.

    Attributes:
        values: of each module of the subject `COLUMNS`, None for those that did not run.
        numbers: what the call gave has no NaN; it may have infinities, which a mask gives on purpose.
    """

    values: list[Value]
    numbers: bool

    @property
    def shows(self) -> tuple[int, int]:
        """How many modules had NaN or an error that was not finite, and, which says less, infinities."""
        ran = [each for each in self.values if isinstance(each, tuple)]
        wrong = sum(NAN in each[1:3] or not all(map(isfinite, each[-2:])) for each in ran)
        return wrong + (not self.numbers), sum(INFINITE in each[1:3] for each in ran)


class _Worst(Finite):
    """The columns of `Finite` by elements, `INFINITE` and `NAN` told apart."""

    def on_input(self, call: int, place: int, module: nn.Module, inputs: list[Tensor]) -> None:
        for tensor in inputs:
            self.note(call, place, 0, _worst(tensor))

    def on_output(self, call: int, place: int, module: nn.Module, outputs: list[Tensor]) -> None:
        for tensor in outputs:
            self.note(call, place, 1, _worst(tensor))

    @staticmethod
    def together(numbers: list[float]) -> float:
        """The worst of all."""
        return max(numbers)


class Calls:
    """Keeps the last calls of a model that record a graph; no copy of what they were given, and no graph.

    Of a model that is never called as a whole (a LightningModule), those of the parts that are.

    Args:
        subject: the model.
        began: called at each, before it is kept; whether to keep it.
    """

    def __init__(self, subject: Subject, began: Callable[[], bool]) -> None:
        self._began = began
        self._kept: deque[Call] = deque(maxlen=KEPT)
        self._hooks: list[Handle] = []
        self._silent: list[tuple[nn.Module, ModuleHook]] = []  # hooked, and not called so far
        self._looks = LOOKS
        if subject.hookable:
            self._listen_to([subject.model])

    def take(self) -> list[Call]:
        """Those since this was last asked."""
        kept = list(self._kept)
        self._kept.clear()
        return kept

    def look_inside(self) -> None:
        """A step is over: where parts of the model were not called, listen to theirs."""
        if not (self._looks and self._silent):
            return
        self._looks -= 1
        silent, self._silent = self._silent, []
        if any(hook.traced for _, hook in silent):
            self._looks = 0  # it is called, and compiled into the caller
            return
        for module, _ in silent:
            if not (hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None)):
                self._listen_to(module.children())

    def close(self) -> None:
        """Take the hooks away."""
        for hook in self._hooks:
            hook.remove()
        self._silent = []
        self._kept.clear()

    def _listen_to(self, modules: Iterable[nn.Module]) -> None:
        for module in modules:
            hook = ModuleHook(self._note)
            self._silent.append((module, hook))
            self._hooks.append(module.register_forward_pre_hook(hook, prepend=True, with_kwargs=True))

    def _note(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        # Inside a backward a checkpoint runs again.
        if not torch.is_grad_enabled() or torch._C._current_graph_task_id() != -1:
            return
        if self._silent:
            self._silent = [each for each in self._silent if each[0] is not module]
        if not self._began():
            return
        if args and not kwargs and all(type(each) is Tensor for each in args):  # as a rule, and at every step
            args, kind = tuple(each.detach() for each in args), args[0].device.type
        else:
            args, kwargs = _pytree.tree_map_only(Tensor, torch.detach, (args, kwargs))
            within = tensors_within((args, kwargs))
            if within is None or any(each.grad_fn is not None for each in within):
                return  # it would be held, with all memory of another step
            first = next(module.parameters(), None)
            kind = "cpu" if first is None else first.device.type
        self._kept.append(Call(module, args, kwargs, torch.get_rng_state(), _autocast(kind)))


def run_again(subject: Subject, call: Call) -> Rerun:
    """Forward and backward of a copy of what was called, with the same random numbers.

    The backward starts from random numbers, for what the loss gave is gone: what it shows that is not
    finite is the model's own doing. From an infinity starts nothing: no loss follows a mask.
    """
    part = unwrapped(call.module)
    twin = Subject(side_copy(part))
    twin.model.zero_grad()
    instruments = (_Worst(twin), Deltas(twin))
    flow = Flow(twin, instruments)
    flow.arm()
    for each in instruments:
        each.arm()
    kind, dtype = call.autocast or ("cpu", torch.bfloat16)
    cast = torch.autocast(kind, dtype, enabled=call.autocast is not None, cache_enabled=False)
    with generators_kept(twin.parameters), torch.enable_grad():
        torch.set_rng_state(call.generator)
        with cast:
            args, kwargs = own_copy((call.args, call.kwargs))
            given = tensors(twin.model(*args, **kwargs))
        numbers = [not bool(each.detach().isnan().any()) for each in given]
        ends = [end for end, sound in zip(given, numbers, strict=True) if sound and end.requires_grad]
        if ends:
            starts = [torch.randn_like(each).masked_fill_(~each.detach().isfinite(), 0) for each in ends]
            torch.autograd.backward(ends, starts)
    flow.on_backward()
    flow.disarm()
    lived = frozenset(flow.lived | {1})  # the one call, whether or not a gradient came back
    order = {place: float(number) for number, place in enumerate(flow.order)}
    batches = [each.read(lived) for each in instruments]
    values = [each.finish(numbers) for each, numbers in zip(batches, to_host(batches), strict=True)]
    places = {id(module): place for place, module in enumerate(subject.modules)}
    found: list[Value] = [None] * len(places)
    own = [places[id(module)] for module in Subject(part).modules]
    for place, (forward, back) in enumerate(zip(*values, strict=True)):
        if forward is None and back is None:
            continue
        *finite, behind = forward if isinstance(forward, tuple) else (-1.0,) * len(Finite.columns)
        errors = back if isinstance(back, tuple) else (-1.0,) * len(Deltas.columns)
        before = float(own[int(behind)]) if behind >= 0 else -1.0
        found[own[place]] = (order.get(place, -1.0), *finite, before, *errors)
    return Rerun(found, all(numbers))


def _worst(tensor: Tensor) -> Tensor:
    """0, `INFINITE` or `NAN`: what is NaN is not finite either."""
    tensor = tensor.detach()
    return (~tensor.isfinite()).any() * INFINITE + tensor.isnan().any() * (NAN - INFINITE)


def _autocast(kind: str) -> tuple[str, torch.dtype] | None:
    """The autocast of a kind of device, as it is here; None where there is none."""
    return (kind, torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else None
