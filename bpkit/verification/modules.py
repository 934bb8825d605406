"""Modules as cases: parameters and buffers become inputs like any other."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from bpkit.core.spec import ModuleSpec, Sample
from bpkit.core.structure import Rebuild, flatten, tensors
from bpkit.verification.case import SEED, Case, Forward, seed
from bpkit.verification.probe import settled


def spec_cases(spec: ModuleSpec) -> Iterator[Case]:
    """One case a sample of `spec`, which is held to the budget that it declares."""
    for sample in spec.samples():
        module = constructed(spec.module, sample)
        reference = None if spec.reference is None else constructed(spec.reference, sample)

        def budget(module: nn.Module = module, inputs: tuple[Any, ...] = sample.inputs) -> int:
            with torch.no_grad():
                return spec.saved_bytes(module, inputs, copy.deepcopy(module)(*copy.deepcopy(inputs)))

        yield module_case(
            module, reference, sample.inputs, label=sample.label, rtol=spec.rtol, strict=True, budget=budget
        )


def constructed(kind: type[nn.Module], sample: Sample) -> nn.Module:
    """The sample's module in float64, with parameters and buffers away from their defaults.

    A scale of 1 or a shift of 0 would hide a backward that leaves them out. A lazy module is called once,
    to have any.
    """
    seed()
    module = kind(*sample.args, **sample.kwargs).double().train(sample.train)
    if any(map(nn.parameter.is_lazy, (*module.parameters(), *module.buffers()))):
        here = torch.get_default_device()  # the module's own
        with torch.no_grad():
            module(*(each.to(here) if isinstance(each, Tensor) else each for each in sample.inputs))
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
            parameter.add_(0.3 * noise)
        for buffer in module.buffers():
            if buffer.is_floating_point():  # a variance stays positive
                noise = torch.rand(buffer.shape, dtype=torch.float64, generator=generator)
                buffer.mul_(1 + 0.3 * noise).add_(0.1 * noise)
    return module


def module_case(
    module: nn.Module, reference: nn.Module | None, inputs: Sequence[Any], **settings: Any
) -> Case:
    """`module` as a function of its inputs, parameters and buffers; `reference` is called with the same."""
    leaves, rebuild = flatten(tuple(inputs))
    parameters = dict(module.named_parameters())
    buffers = dict(module.named_buffers())
    state = [*parameters, *buffers]
    first, last = len(leaves), len(leaves) + len(parameters)
    values = [*leaves, *(value.detach() for value in (*parameters.values(), *buffers.values()))]
    return settled(
        Case(
            forward=_functional(module, rebuild, first, state, len(buffers)),
            reference=None
            if reference is None
            else _functional(reference, rebuild, first, state, len(buffers)),
            values=tuple(values),
            names=(*(f"input {i}" for i in range(first)), *state),
            differentiable=tuple(
                i
                for i, value in enumerate(values[:last])
                if isinstance(value, Tensor) and value.is_floating_point()
            ),
            parameters=frozenset(range(first, last)),
            buffers=frozenset(range(last, len(values))),
            **settings,
        )
    )


def _functional(module: nn.Module, rebuild: Rebuild, first: int, state: list[str], buffers: int) -> Forward:
    """`module` called with its state as arguments; its buffers, as the call leaves them, are outputs too."""

    def forward(*values: Any) -> tuple[Tensor, ...]:
        given = dict(zip(state, values[first:], strict=True))
        output = functional_call(module, given, rebuild(iter(values[:first])))
        kept = list(given.values())
        return tensors(output) + tuple(kept[len(kept) - buffers :])

    return forward
