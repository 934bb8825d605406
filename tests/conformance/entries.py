"""What is compared: each module of torch's own `module_db`, and the registered ones it leaves out."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.testing._internal.common_modules import (
    ErrorModuleInput,
    FunctionInput,
    ModuleInfo,
    ModuleInput,
    module_db,
)

import bpkit.nn
from bpkit.core.spec import ModuleSpec, Sample
from bpkit.plugins.registry import registry


@dataclass(frozen=True)
class Entry:
    """A class of `torch.nn`, and what to call it with.

    Attributes:
        theirs: torch's class.
        info: its entry of `module_db`.
        spec: where torch has none, bpkit's own spec of it.
    """

    theirs: type[nn.Module]
    info: ModuleInfo | None = None
    spec: ModuleSpec | None = None

    @property
    def name(self) -> str:
        return self.theirs.__name__

    @property
    def ours(self) -> type[nn.Module]:
        return getattr(bpkit.nn, self.name)

    @property
    def lazy(self) -> bool:
        return issubclass(self.theirs, LazyModuleMixin)

    @property
    def random(self) -> bool:
        spec = self.spec or next((each for each in specs() if each.reference is self.theirs), None)
        return spec is not None and spec.random

    def inputs(self, dtype: torch.dtype) -> Iterator[tuple[ModuleInput, bool]]:
        """Each sample, and whether it is run in training mode."""
        if self.info is None:
            yield from ((_given(sample, dtype), sample.train) for sample in self.spec.samples())
            return
        for training in (True, False) if self.info.train_and_eval_differ else (True,):
            for each in self.info.module_inputs_func(
                self.info, device="cpu", dtype=dtype, requires_grad=True, training=training
            ):
                if each.forward_input is not None:
                    yield each, training

    def errors(self) -> list[ErrorModuleInput]:
        if self.info is None or self.info.module_error_inputs_func is None:
            return []
        return self.info.module_error_inputs_func(
            self.info, device="cpu", dtype=torch.float64, requires_grad=True, training=True
        )


def _given(sample: Sample, dtype: torch.dtype) -> ModuleInput:
    def cast(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return value.to(dtype)
        return type(value)(map(cast, value)) if type(value) in (tuple, list) else value

    inputs = [
        each.clone().requires_grad_() if isinstance(each, torch.Tensor) and each.is_floating_point() else each
        for each in map(cast, sample.inputs)
    ]
    kwargs = {key: cast(value) for key, value in sample.kwargs.items()}
    return ModuleInput(FunctionInput(*map(cast, sample.args), **kwargs), FunctionInput(*inputs), sample.label)


def specs() -> list[ModuleSpec]:
    return [*registry().layers, *registry().losses]


@functools.cache
def entries() -> dict[str, Entry]:
    """By name: torch's 114, then the rest of bpkit's."""
    found = {info.module_cls.__name__: Entry(info.module_cls, info=info) for info in module_db}
    for spec in specs():
        if spec.reference is not None and spec.reference.__name__ not in found:
            found[spec.reference.__name__] = Entry(spec.reference, spec=spec)
    return found
