"""`Network`: the parameters of a model by layer, and what a verdict's advice needs to know of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from torch import nn

# Wrappers that put a segment of their own into every qualified name below them.
_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_PARALLEL = (nn.parallel.DistributedDataParallel, nn.DataParallel)


@dataclass(frozen=True, slots=True)
class ParameterInfo:
    """A parameter: its name, the layer (module) that owns it, its shape, and whether it mixes features.

    Attributes:
        matrix: it has two axes or more and is no lookup table: what a depth is counted in.
    """

    name: str
    layer: str
    shape: tuple[int, ...]
    matrix: bool

    @property
    def numel(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class Network:
    """A model, described: what diagnostics see of it.

    Attributes:
        parameters: each once, a shared one under its first name, in registration order.
        modules: `(qualified name, class name)` of every leaf module, in registration order.
    """

    parameters: tuple[ParameterInfo, ...]
    modules: tuple[tuple[str, str], ...]

    def between(self, layers: tuple[str, ...]) -> list[str]:
        """Class names of the leaf modules registered from the first of `layers` to just after the last."""
        names = [name for name, _ in self.modules]
        places = [names.index(layer) for layer in layers if layer in names]
        if not places:
            return []
        return [kind for _, kind in self.modules[min(places) : max(places) + 2]]


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
        infos.append(ParameterInfo(name, _layer(name), shape, matrix))
    return Network(tuple(infos), tuple(_leaves(model)))


def _leaves(model: nn.Module) -> Iterator[tuple[str, str]]:
    for name, module in model.named_modules():
        if next(module.children(), None) is None or next(module.parameters(recurse=False), None) is not None:
            yield _plain(name, model), type(module).__name__


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
