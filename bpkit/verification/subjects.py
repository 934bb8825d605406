"""Whatever a user wants proven, as the subjects that checks take."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._library.custom_ops import CustomOpDef

from bpkit.core.errors import BpkitError, unknown_name
from bpkit.core.spec import (
    ModuleSpec,
    OptimizerSpec,
    RegularizerSpec,
    RuleSpec,
    Sample,
    Spec,
)
from bpkit.plugins.registry import registry
from bpkit.verification.case import Case, call
from bpkit.verification.compare import same_bytes
from bpkit.verification.modules import constructed, module_case, spec_cases
from bpkit.verification.penalty import penalty_case
from bpkit.verification.probe import settled
from bpkit.verification.structure import flatten, tensors

PROVABLE = ("layers", "losses", "optimizers", "regularizers", "rules")


@dataclass(frozen=True)
class OptimizerCase:
    """An optimizer, the twin that it follows, and the settings of both."""

    label: str
    optimizer: type[torch.optim.Optimizer]
    reference: type[torch.optim.Optimizer] | None
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class ModuleCase:
    """A module as an object.

    Attributes:
        make: gives a module, the same each time.
        inputs: what it is called with.
        reference: gives a module whose state is interchangeable with it, or None.
        constructs: `make` runs the constructor, and does not copy a module that is there.
    """

    label: str
    make: Callable[[], nn.Module]
    inputs: tuple[Any, ...]
    reference: Callable[[], nn.Module] | None
    constructs: bool


@dataclass(frozen=True)
class OperatorCase:
    """An operator of `torch.library`, and what it is called with."""

    label: str
    operator: Any
    inputs: tuple[Any, ...]


@dataclass(frozen=True)
class RuleCase:
    """A rule's module and the true one on a sample of the layer, and the angles allowed between them."""

    label: str
    module: type[nn.Module]
    reference: type[nn.Module]
    sample: Sample
    angle: float
    input_angle: float | None


@dataclass(frozen=True)
class Target:
    """What is proven, under the name that reports give it.

    Attributes:
        name: for reports.
        subjects: what every check that applies to their class is run on.
        not_proven: by name of check, the reason why it cannot apply.
    """

    name: str
    subjects: tuple[Any, ...]
    not_proven: Mapping[str, str]


def registered(names: Iterable[str] = ()) -> list[Spec]:
    """The specs called one of `names`, of every kind; all there are when no name is given.

    Raises:
        UnknownNameError: a name that nothing registered answers to, with the nearest one that is.
    """
    catalogs: list[Iterable[Spec]] = [getattr(registry(), kind) for kind in PROVABLE]
    everything = [spec for catalog in catalogs for spec in catalog]
    wanted = list(names)
    if not wanted:
        return everything
    known = {name for spec in everything for name in (spec.name, *spec.aliases)}
    for name in wanted:
        if name not in known:
            raise unknown_name("target", name, known)
    return [spec for spec in everything if {spec.name, *spec.aliases} & set(wanted)]


def target_of(target: Any, inputs: tuple[Any, ...], reference: Any) -> Target:
    """The target of a call of `verify`.

    Raises:
        BpkitError: an object that cannot be called, inputs to a spec (it brings its own), a reference
            of another kind than the target.
        UnknownNameError: a name that nothing registered answers to.
    """
    if isinstance(target, str):
        target = registered([target])[0]
    if isinstance(target, Spec):
        if inputs or reference is not None:
            raise BpkitError(f"verify({target.name!r}) takes no inputs or reference: a spec brings its own")
        return _spec_target(target)
    if isinstance(target, nn.Module):
        case = _module(target, inputs, reference)
        cases = [case, *_other_mode(case, target, inputs, reference)]
        return Target(type(target).__name__, (*cases, _object(target, inputs, reference)), {})
    if isinstance(target, type) and issubclass(target, nn.Module):
        raise BpkitError(f"verify takes an instance of {target.__name__}, not the class: construct it first")
    if not callable(target):
        raise BpkitError(
            "verify takes an autograd.Function, a callable, a module, a spec or a registered name, "
            f"not {target!r}"
        )
    subjects: list[Any] = [_function(target, inputs, reference)]
    if isinstance(target, _OPERATORS):
        subjects.append(OperatorCase("", target, inputs))
    return Target(_name_of(target), tuple(subjects), {})


# What `torch.library` registers, and what is found of it under `torch.ops`.
_OPERATORS = (CustomOpDef, torch._ops.OpOverload, torch._ops.OpOverloadPacket)


def _name_of(target: Any) -> str:
    name = getattr(target, "_qualname", None) or getattr(target, "__name__", None)
    return name or type(target).__name__


def _spec_target(spec: Spec) -> Target:
    if isinstance(spec, ModuleSpec):
        objects = [
            ModuleCase(
                sample.label,
                partial(constructed, spec.module, sample),
                sample.inputs,
                None if spec.reference is None else partial(constructed, spec.reference, sample),
                constructs=True,
            )
            for sample in spec.samples()
        ]
        return Target(spec.name, (*spec_cases(spec), *objects), spec.not_proven)
    if isinstance(spec, RegularizerSpec):
        cases = [penalty_case(spec.regularizer(**settings), _label(settings)) for settings in spec.settings]
        return Target(spec.name, tuple(cases), {})
    if isinstance(spec, OptimizerSpec):
        subjects = [
            OptimizerCase(_label(settings), spec.optimizer, spec.reference, settings)
            for settings in spec.settings
        ]
        return Target(spec.name, tuple(subjects), {})
    if isinstance(spec, RuleSpec):
        return Target(spec.name, tuple(_rule_cases(spec)), {})
    raise BpkitError(f"{type(spec).__name__} {spec.name!r} has no backward to prove")


def _rule_cases(spec: RuleSpec) -> Iterator[RuleCase]:
    """The samples of every registered layer that the rule has another backward for."""
    for layer in registry().layers:
        if layer.reference is not None and layer.reference in spec.modules:
            for sample in layer.samples():
                label = f"{layer.name}, {sample.label}" if sample.label else layer.name
                module = spec.modules[layer.reference]
                yield RuleCase(label, module, layer.reference, sample, spec.angle, spec.input_angle)


def _label(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in settings.items())


def _other_mode(case: Case, module: nn.Module, inputs: tuple[Any, ...], reference: Any) -> Iterator[Case]:
    """`case` in the other mode, training or evaluation, of a module that differs in it."""
    mode = not module.training
    if reference is not None and reference.training == mode:
        return  # they were given in two modes on purpose
    other = _module(module, inputs, reference, mode=mode)
    try:
        pairs = [(case.forward, other.forward), (case.reference, other.reference)]
        differ = any(
            not same_bytes(a, b)
            for one, two in pairs
            if one is not None and two is not None
            for a, b in zip(call(one, case.fresh()), call(two, case.fresh()), strict=True)
        )
    except Exception:  # a module that runs in one mode alone
        return
    if differ:
        yield replace(other, label="in training mode" if mode else "in evaluation mode")


def _module(module: nn.Module, inputs: tuple[Any, ...], reference: Any, *, mode: bool | None = None) -> Case:
    """A module on inputs of the user's, both in float64; the user's own module is left alone."""
    double = _double_copy(module)
    cast = tuple(_double(value) for value in inputs)
    if reference is None or isinstance(reference, nn.Module):
        twin = None if reference is None else _double_copy(reference)
        if twin is not None and twin.state_dict().keys() != double.state_dict().keys():
            raise BpkitError(
                "the reference module has other parameters than the target: give one with the same names"
            )
        for each in (double, twin):
            if mode is not None and each is not None:
                each.train(mode)
        return module_case(double, twin, cast)
    raise BpkitError(f"the reference of a module is a module with the same parameters, not {reference!r}")


def _object(module: nn.Module, inputs: tuple[Any, ...], reference: nn.Module | None) -> ModuleCase:
    """The user's module as it is; it is copied before anything is done with it."""
    twin = None if reference is None else partial(_double_copy, reference)
    cast = tuple(_double(value) for value in inputs)
    return ModuleCase("", partial(_plain_copy, module), cast, twin, constructs=False)


def _function(target: Any, inputs: tuple[Any, ...], reference: Callable[..., Any] | None) -> Case:
    """A Function (through its `apply`) or any callable on inputs of the user's, in float64.

    Inputs that require a gradient are differentiated; if none does, every floating-point one is.
    """
    if reference is not None and not callable(reference):
        raise BpkitError(f"the reference must be a callable, not {reference!r}")
    is_function = isinstance(target, type) and issubclass(target, torch.autograd.Function)
    run = target.apply if is_function else target
    parts = [flatten(value)[0] for value in inputs]
    _, rebuild = flatten(tuple(inputs))
    leaves = tuple(_double(leaf) for part in parts for leaf in part)
    floating = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    chosen = [i for i in floating if leaves[i].requires_grad]
    names = [
        name if len(part) == 1 else f"{name}[{i}]"
        for name, part in zip(
            _argument_names(target.forward if is_function else target, inputs), parts, strict=True
        )
        for i in range(len(part))
    ]

    def functional(function: Callable[..., Any]) -> Callable[..., tuple[Tensor, ...]]:
        return lambda *values: tensors(function(*rebuild(iter(values))))

    return settled(
        Case(
            forward=functional(run),
            reference=None if reference is None else functional(reference),
            values=leaves,
            names=tuple(names),
            differentiable=tuple(chosen or floating),
        )
    )


def _double_copy(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).double()


def _plain_copy(module: nn.Module) -> nn.Module:
    """A copy in float64 made without the module's own way of copying itself, which is to be proven."""
    if isinstance(module, torch.jit.ScriptModule):
        return _double_copy(module)
    plain: nn.Module = object.__new__(type(module))
    plain.__dict__.update(copy.deepcopy(module.__dict__, {id(module): plain}))
    return plain.double()


def _double(value: Any) -> Any:
    """Floating-point tensors in float64; a leaf of a graph of its own where the user's requires one."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().double().requires_grad_(value.requires_grad)
    return value


def _argument_names(function: Callable[..., Any], inputs: tuple[Any, ...]) -> list[str]:
    """The arguments as the author calls them, where that can be known."""
    try:
        parameters = inspect.signature(function).parameters.values()
        named = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    except (TypeError, ValueError):
        named = []
    if named[:1] == ["ctx"]:
        named = named[1:]
    return [named[i] if i < len(named) else f"input {i}" for i in range(len(inputs))]
