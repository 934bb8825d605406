"""`Handwritten`, mixed into every module of `bpkit.nn` ahead of its torch class."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from bpkit.core.code import own_code
from bpkit.core.fuse import fuse


class Handwritten:
    """Marks a module whose forward records hand-written backwards.

        class ReLU(Handwritten, torch.nn.ReLU):
            def forward(self, input): return relu(input, self.inplace)

    Attributes:
        fused: run this module's formulas compiled where that is quicker (`convert(fuse=True)`).
        rule: what a learning rule keeps with this module (`RuleSpec.prepare`); `revert` takes it away.
    """

    fused: bool = False
    rule: Any = None
    forward: Callable[..., Any]

    def natives(self) -> Iterable[tuple[str, str]]:
        """What this module was given that runs as torch's all the same: the attribute, and why."""
        return ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "forward" in cls.__dict__:
            cls.forward = _fusing(cls.__dict__["forward"])


def _fusing(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def fusing(self: Handwritten, *args: Any, **kwargs: Any) -> Any:
        if self.fused and not torch.compiler.is_compiling():
            with fuse():
                return forward(self, *args, **kwargs)
        return forward(self, *args, **kwargs)

    return own_code(fusing)


def adopt(module: nn.Module, classes: Mapping[type[nn.Module], type[nn.Module]]) -> None:
    """Give each module below `module` that is of exactly one of these torch classes its hand-written one.

    For the constructor of a composite, which torch's has just filled with torch's modules. It is what
    `bpkit.convert` does, which knows all layers and so cannot be called from below them.
    """
    for child in module.children():
        child.__class__ = classes.get(type(child), type(child))
        adopt(child, classes)
