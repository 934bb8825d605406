"""Healthy runs of convolutional, recurrent and attending networks, of parts that are meant not to train."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from bpkit.bench.clinic.case import ALL, NOTHING, Case, Lab, Prepare, Recipe, adam, sgd, using
from bpkit.bench.clinic.data import Task
from bpkit.bench.clinic.networks import changed, cnn, mlp, resnet
from bpkit.bench.clinic.parts import Adapted
from bpkit.bench.clinic.sequences import recurrent, transformer, words
from bpkit.bench.clinic.shapes import images, rows, vectors


def same(task: Task) -> Task:
    """The data as it was read."""
    return task


def deep(lab: Lab) -> Iterator[Case]:
    """Networks on images and sequences, and fine-tuning."""
    recipes = {**_images(lab), **_sequences(lab), **_tuned(lab)}
    for name, recipe in recipes.items():
        yield Case(name=name, recipe=recipe)
    gan = Recipe(
        model=mlp(2, lab.pick(64, 96)),
        bar=0.3,
        optimizer=adam(1e-3, betas=(0.5, 0.99)),
        steps=400,
        tells=NOTHING,
    )
    yield Case(name="GAN", recipe=gan, loop="gan")


def _images(lab: Lab) -> dict[str, Recipe]:
    base = Recipe(
        model=cnn(lab.pick(8, 12)), data=lab.images, shape=images, optimizer=adam(3e-3), bar=0.8, batch=32
    )
    return {
        "CNN": base,
        "CNN, BatchNorm": replace(
            base, model=cnn(lab.pick(8, 12), norm=nn.BatchNorm2d), optimizer=sgd(0.05, 0.9)
        ),
        "deep CNN, BatchNorm": replace(base, model=cnn(8, lab.pick(8, 6), norm=nn.BatchNorm2d), tells=ALL),
        "ResNet": replace(base, model=resnet(lab.pick(12, 16)), optimizer=sgd(0.05, 0.9)),
    }


def _sequences(lab: Lab) -> dict[str, Recipe]:
    by_rows = Recipe(model=recurrent(), shape=rows, optimizer=adam(5e-3), bar=0.7, steps=240)
    width = lab.pick(48, 40)
    recipes = {
        "LSTM by rows": replace(by_rows, model=recurrent(nn.LSTM, width)),
        "GRU by rows": replace(by_rows, model=recurrent(nn.GRU, width), tells=NOTHING),
        "RNN by rows, clipped": replace(
            by_rows, model=recurrent(nn.RNN, width), clip=1.0, optimizer=adam(2e-3)
        ),
        "two-layer GRU": replace(by_rows, model=recurrent(nn.GRU, width, 2)),
        "transformer, pre-LN, by rows": replace(
            by_rows, model=transformer(lab.pick(3, 4), 32), optimizer=adam(2e-3)
        ),
        "transformer, post-LN, by rows": replace(
            by_rows,
            model=transformer(2, lab.pick(32, 48), norm_first=False),
            optimizer=adam(1e-3),
            rate=lambda step, steps: min(1.0, step / 50),
        ),
    }
    if "plays" in lab.has:
        plays = replace(
            by_rows, data="plays", shape=same, batch=16, bar=0.24, steps=300, optimizer=adam(5e-3), clip=1.0
        )
        recipes |= {
            "characters, LSTM": replace(plays, model=recurrent(nn.LSTM, lab.pick(64, 48))),
            "characters, transformer": replace(
                plays, model=transformer(2, lab.pick(48, 32), dropout=0.1), optimizer=adam(3e-3)
            ),
            "characters, tied transformer": replace(
                plays, model=transformer(lab.pick(2, 3), 32, tied=True), optimizer=adam(3e-3)
            ),
        }
    if "spoken" in lab.has:
        spoken = replace(
            by_rows, data="spoken", shape=same, batch=32, bar=0.5, steps=300, optimizer=adam(3e-3)
        )
        recipes |= {
            "spoken digits, GRU": replace(spoken, model=recurrent(nn.GRU, lab.pick(48, 64))),
            "spoken digits, transformer": replace(spoken, model=transformer(2, 32), optimizer=adam(2e-3)),
        }
    if "captions" in lab.has:
        recipes["words, most of them rare"] = replace(
            by_rows,
            data="captions",
            shape=same,
            model=words(lab.pick(24, 16)),
            optimizer=lab.pick(adam(3e-3), using(torch.optim.Adagrad, 0.05)),
            bar=0.15,
            steps=300,
            tells=ALL,
        )
    return recipes


def pretrained(steps: int = 150) -> Prepare:
    """Train the whole network first, on the same task."""

    def prepare(model: nn.Module, task: Task) -> None:
        wanted = [each for each in model.parameters() if each.requires_grad]
        optimizer = torch.optim.Adam(wanted, 2e-3)
        for _ in range(steps):
            index = torch.randint(len(task.inputs), (64,))
            optimizer.zero_grad()
            F.cross_entropy(model(task.inputs[index]), task.targets[index]).backward()
            optimizer.step()

    return prepare


def new_head(model: Any, task: Task) -> None:
    """A trained and frozen backbone under a head that knows nothing yet."""
    pretrained()(model, task)
    model.requires_grad_(False)
    head = nn.Linear(model[-1].in_features, task.classes)
    model[-1] = head


def adapters(model: Any, task: Task) -> None:
    """Trained, then all frozen but low-rank adapters; the task's labels are renamed."""
    pretrained()(model, task)
    task.targets.copy_((task.targets + 1) % task.classes)
    task.held_targets.copy_((task.held_targets + 1) % task.classes)
    for number, each in enumerate(model):
        if isinstance(each, nn.Linear):
            model[number] = Adapted(each, 4)
    model.requires_grad_(False)
    for each in model:
        if isinstance(each, Adapted):
            each.down.requires_grad_()
            each.up.requires_grad_()


def _own_labels(task: Task) -> Task:
    """Vectors with labels that may be changed: the data set is shared by all runs of a process."""
    task = vectors(task)
    return replace(task, targets=task.targets.clone(), held_targets=task.held_targets.clone())


def _tuned(lab: Lab) -> dict[str, Recipe]:
    base = Recipe(model=mlp(lab.pick(4, 5), lab.pick(64, 80)), data=lab.images, optimizer=adam(2e-3), bar=0.8)

    def random_features(model: nn.Sequential) -> None:
        for each in list(model)[:-1]:
            each.requires_grad_(False)

    return {
        "frozen backbone": replace(base, prepare=new_head),
        "frozen random features": replace(
            base, model=changed(mlp(1, lab.pick(256, 384)), random_features), optimizer=adam(5e-3)
        ),
        "adapters of low rank": replace(
            base, prepare=adapters, shape=_own_labels, optimizer=adam(5e-3), steps=300
        ),
        "fine-tuning at a small rate": replace(base, prepare=pretrained(), optimizer=adam(5e-5)),
    }
