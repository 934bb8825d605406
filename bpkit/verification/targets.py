"""Whatever a user wants proven, as the subjects that checks take."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch._library.custom_ops import CustomOpDef

from bpkit.core.errors import BpkitError, unknown_name
from bpkit.core.spec import ModuleSpec, OptimizerSpec, RegularizerSpec, RuleSpec, Spec
from bpkit.plugins.registry import registry
from bpkit.verification.given import function_subject, module_subjects
from bpkit.verification.modules import constructed, spec_cases
from bpkit.verification.penalty import penalty_case
from bpkit.verification.subjects import ModuleCase, OperatorCase, OptimizerCase, RuleCase

PROVABLE = ("layers", "losses", "optimizers", "regularizers", "rules")


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
        return Target(type(target).__name__, tuple(module_subjects(target, inputs, reference)), {})
    if isinstance(target, type) and issubclass(target, nn.Module):
        raise BpkitError(f"verify takes an instance of {target.__name__}, not the class: construct it first")
    if not callable(target):
        raise BpkitError(
            "verify takes an autograd.Function, a callable, a module, a spec or a registered name, "
            f"not {target!r}"
        )
    subjects: list[Any] = [function_subject(target, inputs, reference)]
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
