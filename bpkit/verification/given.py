"""Functions and modules that somebody hands to `verify` with inputs, as cases; they are never changed."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bpkit.core.errors import BpkitError
from bpkit.core.structure import flatten, tensors
from bpkit.verification.case import Case, call
from bpkit.verification.compare import same_bytes
from bpkit.verification.modules import module_case
from bpkit.verification.probe import settled
from bpkit.verification.subjects import ModuleCase


def module_subjects(
    module: nn.Module, inputs: tuple[Any, ...], reference: Any
) -> Iterator[Case | ModuleCase]:
    """A module as a function, in its other mode too where that differs, and as an object."""
    case = _module(module, inputs, reference)
    yield case
    yield from _other_mode(case, module, inputs, reference)
    yield _object(module, inputs, reference)


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


def function_subject(target: Any, inputs: tuple[Any, ...], reference: Callable[..., Any] | None) -> Case:
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
