"""Faults of arithmetic: NaN and infinity from everywhere, float16 and bfloat16 beyond their range."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from bpkit.bench.clinic.case import Case, Lab, Recipe, adam, fault, named, sgd, using
from bpkit.bench.clinic.data import Task
from bpkit.bench.clinic.networks import Build, changed, inserted, mlp
from bpkit.bench.clinic.optimizers import Careless
from bpkit.bench.clinic.parts import Apply, Half, guarded_root, normalised, wrapped
from bpkit.bench.clinic.shapes import raw, scaled


def nonfinite(lab: Lab) -> Iterator[Case]:
    """NaN, infinity, overflow, underflow, rounding."""
    yield from _layers(lab)
    yield from _elsewhere(lab)
    yield from _formats(lab)


def _layers(lab: Lab) -> Iterator[Case]:
    dense, late = mlp(3, lab.pick(64, 80)), lab.pick(103, 127)
    simple = Recipe(
        model=dense, data=lab.images, optimizer=lab.pick(sgd(0.05), adam(1e-3)), bar=0.75, steps=180
    )
    at = lab.pick(3, 5)

    def with_part(function: Callable[[Tensor], Tensor], since: int) -> Build:
        return inserted(dense, at, partial(Apply, function, nn.Identity(), since))

    yield fault(
        "NaN from a root, late",
        "nonfinite",
        simple,
        named(str(at)),
        at=late,
        model=with_part(torch.sqrt, late),
    )
    yield fault(
        "NaN from 0/0, late",
        "nonfinite",
        simple,
        named(str(at)),
        at=late + 8,
        model=with_part(normalised, late + 8),
    )
    yield fault(
        "infinity from an exponential",
        "nonfinite exploding",
        simple,
        named(str(at)),
        at=late,
        model=with_part(lambda input: torch.exp(1e3 * input), late),
    )
    yield fault(
        "NaN in the backward alone",
        "nonfinite",
        simple,
        named(str(at), str(at - 1), str(at - 2)),
        at=late,
        model=with_part(guarded_root, late),
    )


def _elsewhere(lab: Lab) -> Iterator[Case]:
    late = lab.pick(87, 112)
    simple = Recipe(
        model=mlp(3, lab.pick(64, 80)),
        data=lab.images,
        optimizer=lab.pick(adam(1e-3), sgd(0.05)),
        bar=0.75,
        steps=180,
    )

    def spoilt(value: float) -> Callable[[Tensor, int], Tensor]:
        def alter(inputs: Tensor, step: int) -> Tensor:
            if step != late:
                return inputs
            inputs = inputs.clone()
            inputs[lab.pick(3, 11), lab.pick(5, 20)] = value
            return inputs

        return alter

    yield fault("infinity in a batch", "nonfinite", simple, at=late, alter=spoilt(torch.inf))
    yield fault("NaN in a batch", "nonfinite", simple, at=late, alter=spoilt(torch.nan))

    def likelihood(model: nn.Module, task: Task, inputs: Tensor, targets: Tensor) -> Tensor:
        probabilities = model(inputs).softmax(-1)
        return -probabilities.gather(-1, targets[:, None]).log().mean()

    yield fault(
        "log 0 in the loss",
        "nonfinite exploding divergence",
        simple,
        objective=likelihood,
        shape=scaled(lab.pick(100.0, 200.0)),
        optimizer=sgd(0.05),
    )
    yield fault(
        "NaN made by the optimizer",
        "nonfinite",
        Recipe(
            model=mlp(2, 64), data=lab.images, shape=raw, optimizer=lab.pick(adam(1e-3), adam(2e-3)), bar=0.75
        ),
        named("0"),
        optimizer=lab.pick(using(torch.optim.Adam, 1e-3, eps=0.0), using(Careless, 1e-3)),
    )


def _formats(lab: Lab) -> Iterator[Case]:
    dense = mlp(lab.pick(3, 4), lab.pick(64, 96))
    simple = Recipe(
        model=dense, data=lab.images, optimizer=lab.pick(sgd(0.05), sgd(0.05, 0.9)), bar=0.75, batch=32
    )
    yield fault(
        "float16 overflow by the loss scale",
        "nonfinite",
        simple,
        autocast=torch.float16,
        scale=lab.pick(2.0**24, 2.0**22),
    )
    yield fault(
        "float16 overflow in a layer",
        "nonfinite exploding",
        simple,
        model=changed(wrapped(dense, Half), lambda model: model.inner[2].weight.mul_(lab.pick(3e4, 1e5))),
    )
    yield fault(
        "float16 underflow",
        "vanishing zero stuck plateau update_ratio dead",
        simple,
        model=wrapped(dense, Half),
        objective=lambda model, task, inputs, targets: 1e-7 * task.loss(model(inputs), targets),
        optimizer=sgd(0.05 * 1e7),
    )
    yield fault(
        "bfloat16 weights round updates away",
        "update_ratio stuck plateau",
        Recipe(model=dense, data=lab.images, optimizer=sgd(2e-3, 0.9), bar=0.6, steps=300, batch=16),
        model=wrapped(dense, lambda model: model.bfloat16()),
        shape=lambda task: _rounded(raw(task)),
        optimizer=sgd(lab.pick(1e-3, 2e-3)),
    )


def _rounded(task: Task) -> Task:
    return replace(task, inputs=task.inputs.bfloat16(), held_inputs=task.held_inputs.bfloat16())
