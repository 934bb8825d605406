"""bpkit: hand-written backpropagation for PyTorch.

    import bpkit.nn as nn                 layers and losses whose every backward is derived by hand
    bpkit.convert(model)                  the same model, its backwards swapped for those
    bpkit.verify(MyFunction, x)           a custom backward, proven
    bpkit.watch(model, optimizer)         what is wrong with the gradients of any PyTorch model
    bpkit.Trainer(model, loss=...)        a run put together from plugins

Names load on first use; importing bpkit imports no torch, loads no plugin and sets no global state.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the names below, for a type checker: a plugin's author is told of a wrong field
    from bpkit import (
        data as data,
        functional as functional,
        nn as nn,
        ops as ops,
        optim as optim,
        plugins as plugins,
    )
    from bpkit.core.errors import BpkitError as BpkitError
    from bpkit.core.finding import Finding as Finding
    from bpkit.core.function import Function as Function
    from bpkit.core.fuse import fuse as fuse
    from bpkit.core.module import Handwritten as Handwritten
    from bpkit.core.spec import (
        DiagnosticSpec as DiagnosticSpec,
        LayerSpec as LayerSpec,
        LossSpec as LossSpec,
        OptimizerSpec as OptimizerSpec,
        RecipeSpec as RecipeSpec,
        RegularizerSpec as RegularizerSpec,
        RuleSpec as RuleSpec,
        Sample as Sample,
    )
    from bpkit.diagnostics.watch import watch as watch
    from bpkit.plugins.hookspecs import hookimpl as hookimpl
    from bpkit.swap import (
        convert as convert,
        converted as converted,
        coverage as coverage,
        handwritten as handwritten,
        revert as revert,
    )
    from bpkit.train import Trainer as Trainer
    from bpkit.verification import verify as verify

__version__ = "0.1.0"

_HOME = {
    "BpkitError": "bpkit.core.errors",
    "Function": "bpkit.core.function",
    "fuse": "bpkit.core.fuse",
    "Handwritten": "bpkit.core.module",
    "Sample": "bpkit.core.spec",
    "LayerSpec": "bpkit.core.spec",
    "LossSpec": "bpkit.core.spec",
    "OptimizerSpec": "bpkit.core.spec",
    "RegularizerSpec": "bpkit.core.spec",
    "DiagnosticSpec": "bpkit.core.spec",
    "RecipeSpec": "bpkit.core.spec",
    "RuleSpec": "bpkit.core.spec",
    "hookimpl": "bpkit.plugins.hookspecs",
    "convert": "bpkit.swap",
    "revert": "bpkit.swap",
    "converted": "bpkit.swap",
    "coverage": "bpkit.swap",
    "handwritten": "bpkit.swap",
    "verify": "bpkit.verification",
    "watch": "bpkit.diagnostics",
    "Finding": "bpkit.diagnostics",
    "Trainer": "bpkit.train",
}
_PACKAGES = ("nn", "functional", "ops", "optim", "plugins", "data")

__all__ = [*_HOME, *_PACKAGES, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
    elif name in _PACKAGES:
        value = importlib.import_module(f"bpkit.{name}")
    else:
        raise AttributeError(f"module 'bpkit' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
