"""`Captures`: calls of modules on a sampled step, kept so that they can be made again beside the training.

What is kept are values, not references: the module as it was before the call, the inputs before anybody wrote
over them, the generators' state, and ∂L/∂output as it came back. A bounded number of modules a sample, in
turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction

from bpkit.core.module import Handwritten
from bpkit.core.structure import Rebuild, flatten, tensors
from bpkit.core.transforms import unseen
from bpkit.diagnostics.aside import side_copy
from bpkit.diagnostics.hooks import Handle
from bpkit.diagnostics.instruments.figures import Figures
from bpkit.diagnostics.instruments.instrument import Instrument
from bpkit.diagnostics.network import leaves, unwrapped
from bpkit.diagnostics.paths import again
from bpkit.diagnostics.subject import Subject

Functions = frozenset[type[torch.autograd.Function]]


@dataclass
class Call:
    """A call of a module.

    Attributes:
        name: the module's.
        module: a copy of it from before the call.
        leaves: copies of what it was given, flat; tensors that carried a gradient require one.
        rebuild: makes `(args, kwargs)` of such leaves.
        generators: state of the CPU's generator, and of the current accelerator's, before the call.
        autocast: its dtype if it was on for the device, else None.
        device: where the module's tensors are.
        deltas: ∂L/∂output by the output's place among the output's tensors.
        functions: Functions that nobody registered, in the module's own part of the graph.
    """

    name: str
    module: nn.Module
    leaves: list[Any]
    rebuild: Rebuild
    generators: tuple[Tensor, Tensor | None]
    autocast: torch.dtype | None
    device: torch.device
    deltas: dict[int, Tensor] = field(default_factory=dict)
    functions: Functions = frozenset()

    @property
    def given(self) -> list[Tensor]:
        """The tensors among the inputs."""
        return [each for each in self.leaves if isinstance(each, Tensor)]

    @property
    def finite(self) -> bool:
        """Whether all of its numbers are."""
        held = [*self.given, *self.deltas.values(), *self.module.parameters()]
        return all(bool(each.isfinite().all()) for each in held)


class Captures(Instrument):
    """Keeps calls of hand-written modules, and of those in whose graphs Functions of somebody's own are.

    Attributes:
        layers: modules a sample.
        exclude: names of modules, of their classes and of Functions that are left alone.
        calls: of the last sampled step, by module name.
        failed: by module name, why a call could not be kept.
    """

    of = "model"

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.layers, self.exclude = 4, frozenset[str]()
        self.calls: dict[str, Call] = {}
        self.failed: dict[str, str] = {}
        self._hooks: list[Handle] = []
        self._turn = 0
        self._known: list[nn.Module] = []
        self._found: dict[str, Functions] = {}
        self._claimed: set[Any] = set()

    def arm(self) -> None:
        """Hook the modules whose turn it is; on the first sample, look for Functions in all of them."""
        self.close()
        self.calls = {}
        if self.subject.compiled:
            self.failed["model"] = "runs compiled, where no call can be seen"
            return
        names = {id(module): name for name, module in unwrapped(self.subject.model).named_modules()}
        names.update((id(module), name) for name, module in leaves(self.subject.model))
        modules = [module for module in self.subject.model.modules() if id(module) in names]
        if not (len(modules) == len(self._known) and all(map(_is, modules, self._known))):
            self._known, self._found = modules, {}
            for module in modules:
                self._look_for_functions(names[id(module)] or "model", module)
        single = set(map(id, self.subject.modules))
        candidates = {
            name: module
            for module in modules
            if self._wanted(name := names[id(module)] or "model", module, id(module) in single)
        }
        for name in self._in_turn(list(candidates)):
            self._keep(name, candidates[name])

    def read(self, lived: frozenset[int]) -> Figures:
        """None: what is kept is no figure."""
        self.close()
        self.calls = {name: call for name, call in self.calls.items() if call.deltas}
        return ()

    def close(self) -> None:
        """Take the hooks away."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._claimed = set()

    def _wanted(self, name: str, module: nn.Module, single: bool) -> bool:
        """Whether to keep its calls: not those of a hand-written composite, whose parts are there."""
        if {name, type(module).__name__} & self.exclude:
            return False
        return name in self._found or (single and isinstance(module, Handwritten))

    def _in_turn(self, names: list[str]) -> Iterator[str]:
        """The next `layers` of them; the count of samples decides, not the clock."""
        if not names:
            return
        for place in range(min(self.layers, len(names))):
            yield names[(self._turn + place) % len(names)]
        self._turn = (self._turn + self.layers) % len(names)

    def _keep(self, name: str, module: nn.Module) -> None:
        started: list[Call] = []

        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            started.clear()
            if unseen() or not torch.is_grad_enabled() or (again() and name in self.calls):
                return
            if any(map(nn.parameter.is_lazy, (*module.parameters(), *module.buffers()))):
                return  # it takes its shape in this call; its turn comes again
            known = self.calls.get(name)
            if known is None or not known.deltas:
                started.append(_call(name, module, args, kwargs, self._found.get(name, frozenset())))

        def after(module: nn.Module, args: Any, output: Any) -> None:
            if not started or unseen():
                return
            call = started.pop()

            def note(place: int, delta: Tensor) -> None:
                if not unseen():
                    call.deltas[place] = delta.detach()

            for place, tensor in enumerate(tensors(output)):
                if tensor.requires_grad:
                    self.calls[name] = call
                    tensor.register_hook(partial(note, place))

        self._hooks.append(module.register_forward_pre_hook(self._guarded(name, before), with_kwargs=True))
        self._hooks.append(module.register_forward_hook(self._guarded(name, after), prepend=True))

    def _look_for_functions(self, name: str, module: nn.Module) -> None:
        """Note the custom Functions in the module's own part of the graph, those of modules in it apart."""
        since: list[int] = []

        def before(module: nn.Module, args: Any) -> None:
            since.append(torch._C._autograd._get_sequence_nr())

        def after(module: nn.Module, args: Any, output: Any) -> None:
            if not since or unseen():
                return
            nodes: set[Any] = {
                node
                for node in _nodes(tensors(output), since.pop())
                if isinstance(node, BackwardCFunction) and node not in self._claimed
            }
            self._claimed |= nodes
            functions = frozenset(node._forward_cls for node in nodes)
            own = frozenset(
                each
                for each in functions
                if each.__name__ not in self.exclude and not each.__module__.startswith("torch.")
            )
            if own and not isinstance(module, Handwritten):
                self._found[name] = self._found.get(name, frozenset()) | own

        self._hooks.append(module.register_forward_pre_hook(self._guarded(name, before)))
        self._hooks.append(module.register_forward_hook(self._guarded(name, after), prepend=True))

    def _guarded(self, name: str, hook: Callable[..., None]) -> Callable[..., None]:
        """A hook that cannot end the training."""

        def guarded(*arguments: Any) -> None:
            try:
                hook(*arguments)
            except Exception as error:
                self.failed[name] = f"cannot be copied: {error!r}"

        return guarded


def _call(name: str, module: nn.Module, args: Any, kwargs: Any, functions: Functions) -> Call:
    given, rebuild = flatten((args, kwargs))
    every = [*(each for each in given if isinstance(each, Tensor)), *module.parameters()]
    device = every[0].device if every else torch.device("cpu")
    autocast = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
    generators = (
        torch.get_rng_state(),
        torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    )
    copies = [_copy(each) if isinstance(each, Tensor) else each for each in given]
    return Call(name, side_copy(module), copies, rebuild, generators, autocast, device, functions=functions)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


def _nodes(outputs: tuple[Tensor, ...], since: int) -> Iterator[Any]:
    """Nodes behind `outputs` that were made since."""
    waiting = [each.grad_fn for each in outputs if each.grad_fn is not None]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        if node._sequence_nr() < since:
            continue
        yield node
        for below, _ in node.next_functions:
            if below is not None and below not in seen:
                seen.add(below)
                waiting.append(below)


def _is(one: object, other: object) -> bool:
    return one is other
