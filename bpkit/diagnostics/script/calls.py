"""`Calls`: which modules are called with gradients recorded, while somebody wants to know."""

from __future__ import annotations

import warnings
from typing import Any
from weakref import WeakSet

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from bpkit.diagnostics.hooks import Handle

# torch's, that a global hook fires twice for a compiled module: this one does not.
_WARNING = r"Using `torch\.compile\(module\)` when there are global hooks"


class Calls:
    """A global hook on modules, there while `open`; it costs a microsecond a call of a module.

    Modules called for evaluation are not noted. A module of `torch.compile`'s is, but not what it runs: the
    hook is away meanwhile, or it would be compiled in, and compiled out again.

    Attributes:
        modules: those that were called and are still there.
    """

    def __init__(self) -> None:
        self.modules: WeakSet[nn.Module] = WeakSet()
        self.open = False
        self._handle: Handle | None = None
        self._filter: Any = None

    def begin(self) -> None:
        """Note calls from now on."""
        self.open = True
        if self._handle is None:
            self._handle = register_module_forward_pre_hook(self._on_call)
        if self._filter is None:
            warnings.filterwarnings("ignore", _WARNING)
            self._filter = warnings.filters[0]

    def end(self) -> None:
        """Take the hook away, and forget."""
        self.open = False
        self._remove()
        self.modules.clear()
        if self._filter in warnings.filters:
            warnings.filters.remove(self._filter)  # type: ignore[attr-defined]  # a list, whatever its stub says
        self._filter = None

    def _remove(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _on_call(self, module: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return
        self.modules.add(module)
        if hasattr(module, "_orig_mod"):
            self._remove()
            self._back_after(module)

    def _back_after(self, module: nn.Module) -> None:
        """The hook again, when this call of a compiled module is over."""

        def over(module: nn.Module, args: Any, output: Any) -> None:
            handle.remove()
            if self.open:
                self.begin()

        handle = module.register_forward_hook(over, always_call=True)
