"""`Flow`: what passes through the modules on a sampled step, and the errors δ that come back.

Everything is read beside the graph of the training, never by a node put into it:

*δ of an output* by a hook on the tensor, which also holds when an in-place activation writes over it later.
*δ of an input* by hooks on the nodes inside the module that hand a gradient to it. A hook on the input
tensor would add up what its other users send back, as around a residual block; torch's full backward hooks
put a view into the graph that an in-place activation then breaks.

A forward that is run again by activation checkpointing is told from a first one, and a call of the model
that no backward comes back to, for evaluation, from one that trains.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from bpkit.core.errors import BpkitError
from bpkit.core.transforms import unseen
from bpkit.diagnostics.functional import activations
from bpkit.diagnostics.hooks import Handle, ModuleHook
from bpkit.diagnostics.instruments.instrument import Instrument
from bpkit.diagnostics.nested import tensors
from bpkit.diagnostics.paths import Start, Sum, again, on_error
from bpkit.diagnostics.subject import Subject

logger = logging.getLogger("bpkit")

CALLS = 8  # of the model without a backward: an evaluation that left gradients on
_Listeners = dict[Instrument, Callable[..., None]]

OUTSIDE = 0  # the call that modules belong to when the model itself was not called


class Flow:
    """Hooks on the modules of one sampled step, for the instruments that listen.

    Attributes:
        order: places of modules, in the order in which they were first called.
        lived: numbers of those calls of the model that a backward came back through.
        seconds: that the hooks have taken.
        fed: the model was called on what another one gave, with a gradient back to it.
    """

    def __init__(self, subject: Subject, instruments: Sequence[Instrument]) -> None:
        self._subject = subject

        def listening(method: str, *, integers: bool | None = None) -> _Listeners:
            base = getattr(Instrument, method)
            return {
                each: getattr(each, method)
                for each in instruments
                if getattr(type(each), method) is not base and integers in (None, each.integers)
            }

        self._on_input = listening("on_input", integers=False)
        self._on_any_input = listening("on_input", integers=True)
        self._on_output = listening("on_output")
        self._on_delta_out, self._on_delta_in = listening("on_delta_out"), listening("on_delta_in")
        self._all = (
            self._on_input,
            self._on_any_input,
            self._on_output,
            self._on_delta_out,
            self._on_delta_in,
        )
        for each in instruments:
            each.listen = self.listen
        self._since = 0  # where the graph of the module begins that has just run
        self._traced = self._broken = False
        self.seconds = 0.0
        self.fed = False
        self.failed: set[Instrument] = set()
        self._hooks: list[Handle] = []
        self._module_hooks: list[ModuleHook] = []
        self._starts: dict[int, list[Start]] = {}
        self._hooked: set[tuple[int, int]] = set()
        self._sums: list[Sum] = []
        self._ends: dict[Node, int] = {}
        self._calls = OUTSIDE
        self._waiting = 0
        self._stack: list[tuple[int, bool]] = []
        self.order: dict[int, None] = {}
        self.lived: set[int] = {OUTSIDE}

    def arm(self) -> None:
        """Hook every module that runs eagerly; the hooks do nothing where no gradient is recorded.

        A compiled module is left alone: a hook would be compiled in, and compiled out again.
        """
        self.disarm()
        self._calls, self.order, self.lived = OUTSIDE, {}, {OUTSIDE}
        self._waiting = 0
        if not any(self._all) or self._traced or self._broken or not self._subject.hookable:
            return
        root = self._subject.model
        compiled = _inside_compiled(root)
        self._hooks = [
            root.register_forward_pre_hook(self._hook(self._enter), prepend=True),
            root.register_forward_hook(self._hook(self._leave), always_call=True),
        ]
        for place, module in enumerate(self._subject.modules):
            if id(module) not in compiled:
                before, after = self._hook(self._before(place)), self._hook(self._after(place))
                self._hooks.append(module.register_forward_pre_hook(before, with_kwargs=True))
                # Ahead of the user's own: what they return, or write over, is not the module's.
                self._hooks.append(module.register_forward_hook(after, prepend=True, with_kwargs=True))

    def disarm(self) -> None:
        """Take the hooks on modules away; those in a graph go with it.

        Hooks that were there when somebody compiled what calls the modules stay, and do nothing: the compiled
        code expects them, though it has none of them in it, and would be compiled again without.
        """
        self._traced |= any(each.traced for each in self._module_hooks)
        if not self._traced:
            self._unhook()
        self._starts, self._hooked, self._stack, self._sums, self._ends = {}, set(), [], [], {}

    def close(self) -> None:
        """Take all hooks on modules away."""
        self.disarm()
        self._unhook()

    def _hook(self, function: Callable[..., None]) -> ModuleHook:
        self._module_hooks.append(ModuleHook(self._guarded(function)))
        return self._module_hooks[-1]

    def _unhook(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._module_hooks = [], []

    def on_backward(self) -> None:
        """A backward is over: what arrived at an input by some of its paths only is all there is."""
        self._waiting = 0
        for each in self._sums:
            each.flush()

    def tell(self, instruments: Iterable[Instrument], method: str, *arguments: Any) -> None:
        """Call a method of each; one that fails is left out from then on, and the training goes on."""
        sound = {each: getattr(each, method) for each in instruments if each not in self.failed}
        self._tell(sound, *arguments)

    @contextmanager
    def leaving_out(self, instrument: Instrument) -> Iterator[None]:
        """What is done with one instrument: if it fails, for the last time."""
        try:
            yield
        except Exception as error:
            self.fail(instrument, error)

    def _tell(self, listeners: _Listeners, *arguments: Any) -> None:
        if not listeners:
            return
        recorded = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)  # what `no_grad` does, at a tenth of its time
        try:
            for each, method in tuple(listeners.items()):
                try:
                    method(*arguments)
                except Exception as error:
                    self.fail(each, error)
        finally:
            torch._C._set_grad_enabled(recorded)

    def fail(self, instrument: Instrument, error: Exception) -> None:
        """Leave an instrument out."""
        self.failed.add(instrument)
        for each in self._all:
            each.pop(instrument, None)
        why = error if isinstance(error, BpkitError) else repr(error)
        logger.warning("bpkit: %s is no longer measured: %s", type(instrument).__name__, why)

    def listen(self, tensor: Tensor, hook: Callable[[Tensor], None]) -> None:
        """Call `hook` with ∂L/∂tensor, under the same guard as all hooks."""

        def quiet(delta: Tensor) -> None:
            if not self._blind():
                with torch.no_grad():
                    hook(delta.detach())

        on_error(tensor, self._guarded(quiet), self._since)

    def _enter(self, module: nn.Module, args: Any) -> None:
        if not (self._blind() or again()):
            self._waiting += 1
            self._calls += 1
            self._stack.append((self._calls, torch.is_grad_enabled()))
            self.fed |= any(each.grad_fn is not None for each in tensors(args))

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._blind() or again() or not self._stack:
            return
        call, recorded = self._stack.pop()
        outputs = tensors(output)
        if recorded and self._subject.functional is None:
            self._subject.functional = activations(outputs, self._ends)
            self._ends = {}
        for tensor in outputs:
            if tensor.requires_grad:
                tensor.register_hook(self._guarded(lambda _: self.lived.add(call)))

    def _before(self, place: int) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            if self._blind():
                return
            call, recorded = self._call()
            inputs = tensors((args, kwargs))
            self._starts.setdefault(place, []).append(Start(inputs if self._on_delta_in else []))
            if recorded and not again():
                self.order[place] = None
                self._tell(self._on_input, call, place, module, inputs)
                if self._on_any_input:
                    given = tensors((args, kwargs), integers=True)
                    self._tell(self._on_any_input, call, place, module, given)

        return hook

    def _after(self, place: int) -> Callable[[nn.Module, Any, Any, Any], None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if self._blind() or not self._starts.get(place):
                return
            start = self._starts[place].pop()
            call, recorded = self._call()
            self._since = start.since
            outputs, repeated = tensors(output), again()
            if recorded and not repeated:
                if self._subject.functional is None:
                    self._ends.update((each.grad_fn, place) for each in outputs if each.grad_fn is not None)
                self._tell(self._on_output, call, place, module, outputs)
            # A reentrant checkpoint records only when it runs again, the other kind the first time.
            if torch.is_grad_enabled() and not (repeated and (call, place) in self._hooked):
                self._watch_deltas(call, place, start, [each for each in outputs if each.requires_grad])
                if not repeated:
                    self._hooked.add((call, place))

        return hook

    def _watch_deltas(self, call: int, place: int, start: Start, outputs: list[Tensor]) -> None:
        def deliver(listeners: _Listeners) -> Callable[[Tensor], None]:
            def hook(delta: Tensor) -> None:
                self.lived.add(call)
                if not self._blind():
                    self._tell(listeners, call, place, delta.detach())

            return self._guarded(hook)

        if self._on_delta_out:
            for tensor in outputs:
                on_error(tensor, deliver(self._on_delta_out), start.since)
        if self._on_delta_in:
            self._sums += start.watch(outputs, deliver(self._on_delta_in))

    def _call(self) -> tuple[int, bool]:
        """The number of the model's call that is going on, and whether it records a graph."""
        return self._stack[-1] if self._stack else (OUTSIDE, torch.is_grad_enabled())

    def _blind(self) -> bool:
        """Whether values cannot be looked at, or need not: no backward comes to so many forwards."""
        return self._traced or self._broken or self._waiting > CALLS or unseen()

    def _guarded(self, hook: Callable[..., None]) -> Callable[..., None]:
        """A hook that cannot end the training: what goes wrong in it ends the looking, with one line."""

        def guarded(*arguments: Any) -> None:
            start = time.perf_counter()
            try:
                hook(*arguments)
            except Exception as error:
                self._broken = True
                logger.warning("bpkit: modules are no longer watched, for a hook failed: %r", error)
            self.seconds += time.perf_counter() - start

        return guarded


def _inside_compiled(root: nn.Module) -> set[int]:
    """Modules below one that is compiled; the wrapper that `torch.compile` made itself runs eagerly."""
    return {
        id(inner)
        for module in root.modules()
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
        for inner in module.modules()
        if inner is not module or not hasattr(module, "_orig_mod")
    }
