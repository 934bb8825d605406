"""`Network`: the parameters of a model by layer, and what a verdict's advice needs to know of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import NamedTuple

import torch
from torch import nn

# Wrappers that put a segment of their own into every qualified name below them.
_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_PARALLEL = (nn.parallel.DistributedDataParallel, nn.DataParallel)


@dataclass(frozen=True, slots=True)
class ParameterInfo:
    """A parameter: its name, the layer (module) that owns it, its shape, and whether it mixes features.

    Attributes:
        matrix: it has two axes or more and is no lookup table: what a depth is counted in.
        coarse: its dtype is float16 or bfloat16.
    """

    name: str
    layer: str
    shape: tuple[int, ...]
    matrix: bool
    coarse: bool = False

    @property
    def numel(self) -> int:
        return prod(self.shape)


class ModuleInfo(NamedTuple):
    """A module that has no children, or parameters of its own."""

    name: str
    kind: str


@dataclass(frozen=True)
class Network:
    """A model, described: what diagnostics see of it.

    Attributes:
        parameters: each once, a shared one under its first name, in registration order.
        modules: qualified name and class name of every leaf module, in registration order.
        model: class name of the model, its wrappers taken off.
        names: qualified names of all modules, in registration order.
    """

    parameters: tuple[ParameterInfo, ...]
    modules: tuple[ModuleInfo, ...]
    model: str = ""
    names: tuple[str, ...] = ()

    def inner(self, before: str, after: str) -> list[str]:
        """Modules that are registered between two leaf modules and are none themselves: what runs there."""
        if before not in self.names or after not in self.names:
            return []
        between = self.names[self.names.index(before) + 1 : self.names.index(after)]
        return [name for name in between if name not in self.kinds and not before.startswith(f"{name}.")]

    @cached_property
    def kinds(self) -> dict[str, str]:
        """Class name by qualified name."""
        return dict(self.modules)

    def between(self, layers: tuple[str, ...]) -> list[str]:
        """Class names of the leaf modules registered from the first of `layers` to just after the last."""
        names = [name for name, _ in self.modules]
        places = [names.index(layer) for layer in layers if layer in names]
        if not places:
            return []
        return [module.kind for module in self.modules[min(places) : max(places) + 2]]


def describe(model: nn.Module) -> Network:
    """The network, its parameters in the order of `model.parameters()`."""
    infos = []
    tables = {
        id(table.weight) for table in model.modules() if isinstance(table, nn.Embedding | nn.EmbeddingBag)
    }
    for name, parameter in model.named_parameters():
        name = _plain(name, model)
        shape = (0,) if nn.parameter.is_lazy(parameter) else tuple(parameter.shape)
        matrix = len(shape) > 1 and id(parameter) not in tables
        coarse = parameter.dtype in (torch.float16, torch.bfloat16)
        infos.append(ParameterInfo(name, _layer(name), shape, matrix, coarse))
    modules = tuple(ModuleInfo(name, _kind(module)) for name, module in leaves(model))
    names = tuple(_plain(name, model) or "model" for name, _ in model.named_modules())
    return Network(tuple(infos), modules, type(unwrapped(model)).__name__, names)


def leaves(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Modules without children, and those with parameters of their own, by qualified name.

    A parametrization's own modules are left out: they belong to the layer whose weight they make.
    """
    return [(_plain(name, model) or "model", module) for name, module in _leaves(model)]


def unwrapped(model: nn.Module) -> nn.Module:
    """The user's own module, inside what compiled or distributed it."""
    inner = getattr(model, "_orig_mod", model)
    if isinstance(inner, _PARALLEL):
        return unwrapped(inner.module)
    return inner


def _leaves(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        if "parametrizations" in name.split("."):
            continue
        own = next(module.parameters(recurse=False), None) is not None or hasattr(module, "parametrizations")
        if own or next(module.children(), None) is None:
            yield name, module


def _kind(module: nn.Module) -> str:
    """The class's name, without what torch puts before it where it makes a class at run time."""
    name = type(module).__name__
    for made in ("Parametrized", "FSDP"):
        base = name.removeprefix(made)
        if base != name and any(each.__name__ == base for each in type(module).__mro__):
            name = base
    return name


def _plain(name: str, model: nn.Module) -> str:
    """A qualified name without what compiling, wrapping and distributing put into it."""
    segments = [segment for segment in name.split(".") if segment not in _WRAPPERS]
    inner = getattr(model, "_orig_mod", model)
    if isinstance(inner, _PARALLEL) and segments[:1] == ["module"]:
        del segments[0]
    return ".".join(segments)


def _layer(name: str) -> str:
    """The owner of a parameter; a parametrized one belongs to the layer, not to its parametrization."""
    owner = name.split(".parametrizations.")[0] if ".parametrizations." in name else name.rpartition(".")[0]
    return owner or "model"
