"""What a plugin hands in: frozen descriptions that carry their own proof.

A spec says what a thing is called, how to make it, what it is measured against and on which
samples; `bpkit.verify` runs on whatever is registered, whoever wrote it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import nn

Samples = Callable[[], Iterable["Sample"]]
SavedBytes = Callable[[nn.Module, tuple[Any, ...], Any], int]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One case to prove a module on: how it is built, and what it is called with.

    Floating-point tensors are float64 and come from a seeded generator (`randn`); the checks cast,
    transpose and expand copies of them, and never change the originals.

    Attributes:
        inputs: what the module is called with, tensors or not.
        args: arguments of its constructor, by position.
        kwargs: arguments of its constructor, by name.
        train: in training mode, or in evaluation mode.
        label: what reports call this case.
    """

    inputs: tuple[Any, ...]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    train: bool = True
    label: str = ""


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What every spec has.

    Attributes:
        name: unique among the specs of its kind, whoever brought them.
        summary: a line about it.
        aliases: further names that it answers to, as unique.
    """

    name: str
    summary: str = ""
    aliases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for each in fields(self):
            kind = _REQUIRED.get(each.name)
            value = getattr(self, each.name)
            if kind is not None and not isinstance(value, kind):
                raise TypeError(
                    f"{type(self).__name__}({self.name!r}): {each.name} must be "
                    f"{_READABLE[kind]}, not {value!r}"
                )
        if not self.name or self.name != self.name.strip():
            raise ValueError(f"{type(self).__name__}: name must be a non-empty word, not {self.name!r}")


@dataclass(frozen=True, kw_only=True)
class ModuleSpec(Spec):
    """A module with a hand-written backward, the torch module it stands in for, and its proof.

    Attributes:
        module: the hand-written class, constructed as `reference` is.
        reference: the torch class it is compared with; `bpkit.convert` swaps exact instances of it.
            None for a layer that torch does not have: then there is no swap and no comparison.
        samples: called without arguments, gives the `Sample`s to prove it on.
        saves: in words, what is kept for backward.
        saved_bytes: `(module, inputs, output) -> int`, the most bytes a call on `inputs` may keep for
            backward, parameters apart.
        rtol: relative error allowed against `reference` in float64 (max|a-b| / max|b| of a tensor).
        random: the forward draws random numbers; the checks seed torch's generator before each call.
        not_proven: by name of check, the reason why that check cannot apply to this module.
    """

    module: type[nn.Module]
    reference: type[nn.Module] | None
    samples: Samples
    saves: str
    saved_bytes: SavedBytes
    rtol: float = 1e-12
    random: bool = False
    not_proven: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LayerSpec(ModuleSpec):
    """A layer: `module(*args, **kwargs)(*inputs)` gives a tensor or a tuple of them."""


@dataclass(frozen=True, kw_only=True)
class LossSpec(ModuleSpec):
    """A loss: `module(*args, **kwargs)(input, target)` gives a tensor, a scalar by default."""


@dataclass(frozen=True, kw_only=True)
class OptimizerSpec(Spec):
    """An optimizer, and the twin it follows step for step.

    Attributes:
        optimizer: `optimizer(params, **settings)`, a `torch.optim.Optimizer`.
        reference: the torch class that it equals after each of 100 steps in float64, or None.
        settings: keyword arguments to try, one mapping a case.
    """

    optimizer: type[torch.optim.Optimizer]
    reference: type[torch.optim.Optimizer] | None
    settings: tuple[Mapping[str, Any], ...] = ({},)


@dataclass(frozen=True, kw_only=True)
class RegularizerSpec(Spec):
    """A penalty on parameters with a hand-written gradient.

    Attributes:
        regularizer: `regularizer(**settings)` gives an object with `value(parameter) -> 0-d tensor` and
            `gradient(parameter) -> tensor`, the derivative of that value.
        settings: keyword arguments to prove it with, one mapping a case.
    """

    regularizer: Callable[..., Any]
    settings: tuple[Mapping[str, Any], ...] = ({},)


@dataclass(frozen=True, kw_only=True)
class DiagnosticSpec(Spec):
    """A diagnostic: `diagnostic()` gives an object that reads `Sample`s of a run and finds faults.

    Attributes:
        diagnostic: factory without required arguments; see `bpkit.diagnostics`.
        kinds: the kinds of finding that it may report.
        default: part of a watch that names no diagnostics.
    """

    diagnostic: Callable[..., Any]
    kinds: tuple[str, ...]
    default: bool = True


@dataclass(frozen=True, kw_only=True)
class RecipeSpec(Spec):
    """A run as data.

    Attributes:
        toml: the text of a file that `bpkit train` accepts.
    """

    toml: str


@dataclass(frozen=True, kw_only=True)
class RuleSpec(Spec):
    """Another backward for existing layers, chosen by `bpkit.convert(model, rule=name)`.

    Attributes:
        modules: by torch class, the module class with that backward; a subclass of the torch class (for
            a layer that torch does not have, of its spec's `reference`) that replaces `forward` alone.
        angle: degrees to the true gradient that the rule's weight gradient is allowed, on the samples
            of each of those layers.
        input_angle: degrees to the true one that the gradient which a layer hands down to its input is
            allowed; None where nothing is promised (a random feedback is at 90° to start with). Where
            the true gradient is zero there is no angle, and the rule's must not be zero.
        prepare: called with a model that `convert` has just given this rule: for what a rule needs to
            know of the whole, such as a layer's place in it. What it keeps with a module goes into
            `module.rule`, which is no parameter, not in the state dict, and gone after `revert`.
    """

    modules: Mapping[type[nn.Module], type[nn.Module]]
    angle: float
    input_angle: float | None = None
    prepare: Callable[[nn.Module], None] | None = None


_REQUIRED: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "summary": str,
    "aliases": tuple,
    "toml": str,
    "kinds": tuple,
    "settings": tuple,
}
_READABLE: dict[Any, str] = {str: "a string", tuple: "a tuple"}


def nbytes(*values: Any) -> int:
    """Bytes that the tensors among `values` hold; for writing `saved_bytes`."""
    return sum(value.numel() * value.element_size() for value in values if isinstance(value, torch.Tensor))


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    """A float64 normal sample from its own generator; for writing `samples`."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
