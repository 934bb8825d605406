"""Faults of the training: plateaus, what is never trained, overfitting, noise, decay."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import cast

import torch
from torch import nn

from bpkit.bench.clinic.case import ALL, Case, Lab, Optimizer, Recipe, adam, fault, named, sgd, using
from bpkit.bench.clinic.networks import changed, inserted, mlp
from bpkit.bench.clinic.parts import Apply, Orphan, wrapped
from bpkit.bench.clinic.sequences import transformer
from bpkit.bench.clinic.shapes import few, mislabelled, rows


def training(lab: Lab) -> Iterator[Case]:
    """What the loop, the optimizer or the data do wrong."""
    yield from _slow(lab)
    yield from _untrained(lab)
    yield from _data(lab)


def _simple(lab: Lab) -> Recipe:
    return Recipe(
        model=mlp(lab.pick(3, 4), lab.pick(64, 80)),
        data=lab.images,
        optimizer=lab.pick(sgd(0.05, 0.9), adam(1e-3)),
        bar=0.8,
    )


def _slow(lab: Lab) -> Iterator[Case]:
    simple = _simple(lab)
    kinds = "plateau update_ratio stuck"
    yield fault("rate far too small", kinds, simple, optimizer=lab.pick(adam(1e-7), sgd(1e-6)))
    yield fault(
        "rate far too small, transformer",
        kinds,
        Recipe(model=transformer(2, 32), shape=rows, optimizer=adam(2e-3), bar=0.6, steps=240),
        optimizer=adam(lab.pick(3e-8, 1e-7)),
    )
    yield fault(
        "clipped to nothing", kinds + " vanishing", simple, optimizer=sgd(0.05), clip=lab.pick(1e-5, 1e-6)
    )
    yield fault(
        "weights decayed to nothing",
        "plateau vanishing zero scale update_ratio",
        simple,
        optimizer=lab.pick(
            sgd(0.1, weight_decay=1.0), using(torch.optim.AdamW, 3e-3, weight_decay=lab.pick(30.0, 40.0))
        ),
    )
    late = lab.pick(11, 16)
    yield fault(
        "schedule that ends too early",
        "plateau update_ratio stuck",
        Recipe(model=mlp(3, 64), data=lab.images, optimizer=sgd(0.02), bar=0.75, steps=300),
        at=late,
        rate=lambda step, steps: 0.0 if step >= late else 1.0,
    )


def _untrained(lab: Lab) -> Iterator[Case]:
    simple = _simple(lab)
    where = lab.pick("2", "4")
    momentum = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
    make = cast(Callable[..., Optimizer], lab.pick(momentum, partial(torch.optim.Adam, lr=1e-3)))

    def groups(model: nn.Module) -> Optimizer:
        stuck = list(model.get_submodule(where).parameters())
        rest = [each for each in model.parameters() if all(each is not other for other in stuck)]
        return make([{"params": rest}, {"params": stuck, "lr": 0.0}])

    def without(model: nn.Module) -> Optimizer:
        left_out = list(model.get_submodule(where).parameters())
        return make([each for each in model.parameters() if all(each is not other for other in left_out)])

    def freeze(model: nn.Module) -> None:
        model.get_submodule(where).requires_grad_(False)

    layer = named(where)
    yield fault(
        "a layer at rate 0", "stuck frozen update_ratio", simple, layer, silent=True, optimizer=groups
    )
    yield fault(
        "a layer not handed to the optimizer",
        "stuck frozen disconnected update_ratio",
        simple,
        layer,
        silent=True,
        optimizer=without,
    )
    yield fault(
        "a middle layer frozen by mistake",
        "frozen stuck",
        simple,
        layer,
        silent=True,
        model=changed(simple.model, freeze),
    )
    yield fault(
        "orphan",
        "disconnected stuck",
        simple,
        named("forgotten"),
        silent=True,
        model=wrapped(simple.model, partial(Orphan, width=lab.pick(16, 32))),
    )
    at = lab.pick(4, 6)
    yield fault(
        "detached in the middle",
        "disconnected stuck",
        simple,
        named(*map(str, range(at + 1))),
        silent=True,
        model=inserted(simple.model, at, partial(Apply, torch.Tensor.detach, torch.Tensor.detach)),
    )


def _data(lab: Lab) -> Iterator[Case]:
    simple = _simple(lab)
    both = ALL
    yield fault(
        "overfitting",
        "overfit",
        Recipe(
            model=mlp(2, lab.pick(128, 192)),
            data=lab.images,
            optimizer=adam(2e-3),
            bar=0.85,
            tells=both,
            steps=300,
        ),
        shape=few(lab.pick(40, 60)),
    )
    yield fault(
        "labels at random",
        "noise plateau overfit",
        Recipe(model=mlp(2, 64), data=lab.images, optimizer=adam(1e-3), bar=0.8, tells=both, steps=300),
        shape=mislabelled(lab.pick(1.0, 0.95)),
    )
    yield fault(
        "noise beyond the batch",
        "noise plateau divergence",
        simple,
        batch=1,
        optimizer=sgd(lab.pick(0.1, 0.06)),
    )
