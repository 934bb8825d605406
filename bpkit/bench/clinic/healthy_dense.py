"""Healthy runs of fully connected networks, many of which look odd and are not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import init
from torch.nn.utils import parametrizations

from bpkit.bench.clinic.case import ALL, NOTHING, Case, Lab, Recipe, adam, sgd, using
from bpkit.bench.clinic.data import Task
from bpkit.bench.clinic.networks import Change, autoencoder, changed, mlp, residual
from bpkit.bench.clinic.parts import Sparse, experts, two_heads, wrapped
from bpkit.bench.clinic.shapes import autoencoding, raw, regression


def warm_cosine(step: int, steps: int) -> float:
    """A rise over a tenth of the steps, then half a cosine to 0."""
    rise = steps // 10
    return step / rise if step < rise else 0.5 * (1 + math.cos(math.pi * (step - rise) / (steps - rise)))


def dense(lab: Lab) -> Iterator[Case]:
    """Networks on vectors."""
    rows = {**_activations(lab), **_optimizers(lab), **_unusual(lab)}
    for name, recipe in rows.items():
        yield Case(name=name, recipe=recipe)


def _activations(lab: Lab) -> dict[str, Recipe]:
    width = lab.pick(64, 96)
    base = Recipe(model=mlp(3, width), data=lab.images, optimizer=adam(1e-3), bar=0.8)
    deep, told = lab.pick(12, 16), ALL
    return {
        "MLP, ReLU": base,
        "MLP, GELU": replace(base, model=mlp(3, width, nn.GELU), tells=NOTHING),
        "MLP, tanh": replace(base, model=mlp(3, width, nn.Tanh, gain=1.0), optimizer=sgd(0.05, 0.9)),
        "MLP, sigmoid": replace(base, model=mlp(2, width, nn.Sigmoid, gain=None), optimizer=adam(5e-3)),
        "MLP, SiLU, torch's initialisation": replace(
            base, model=mlp(3, width, nn.SiLU, gain=None), tells=told
        ),
        "MLP, leaky ReLU": replace(base, model=mlp(4, width, partial(nn.LeakyReLU, 0.1)), tells=NOTHING),
        "deep MLP, He": replace(base, model=mlp(deep, width), steps=240),
        "deep MLP, BatchNorm": replace(
            base, model=mlp(lab.pick(8, 10), width, norm=nn.BatchNorm1d), optimizer=sgd(0.05, 0.9)
        ),
        "deep MLP, SELU": replace(base, model=mlp(8, width, nn.SELU, gain=1.0)),
        "one layer": replace(base, model=mlp(0), optimizer=adam(5e-3)),
        "deep residual, LayerNorm": replace(base, model=residual(lab.pick(16, 20), 48), tells=told),
        "residual, ReZero": replace(base, model=residual(lab.pick(8, 12), 48, norm=False, rezero=True)),
    }


def _optimizers(lab: Lab) -> dict[str, Recipe]:
    model = mlp(lab.pick(3, 4), lab.pick(64, 80))
    base = Recipe(model=model, data=lab.images, optimizer=sgd(0.05, 0.9), bar=0.8)
    momentum = lab.pick(0.9, 0.8)
    return {
        "SGD": replace(base, optimizer=sgd(lab.pick(0.1, 0.05)), steps=300),
        "SGD with momentum": replace(base, optimizer=sgd(0.03, momentum), tells=NOTHING),
        "SGD, Nesterov, weight decay": replace(
            base, optimizer=sgd(0.03, momentum, nesterov=True, weight_decay=1e-3)
        ),
        "AdamW, decay": replace(base, optimizer=using(torch.optim.AdamW, 1e-3, weight_decay=0.1)),
        "RMSprop": replace(base, optimizer=using(torch.optim.RMSprop, 1e-3)),
        "Adagrad": replace(base, optimizer=using(torch.optim.Adagrad, 1e-2)),
        "large batch": replace(base, batch=512, optimizer=adam(2e-3)),
        "small batch": replace(base, batch=8, optimizer=adam(5e-4), steps=400),
        "accumulated gradients": replace(base, batch=16, accumulate=4),
        "clipped": replace(base, clip=lab.pick(0.5, 1.0), optimizer=sgd(0.05, 0.9)),
        "warm-up and cosine": replace(base, rate=warm_cosine, optimizer=adam(3e-3)),
        "dropout": replace(base, model=mlp(3, 96, dropout=lab.pick(0.3, 0.2)), tells=ALL),
        "bfloat16 autocast": replace(base, autocast=torch.bfloat16),
        "float16 with a GradScaler": replace(base, autocast=torch.float16, scaler=True),
        "long, to convergence": replace(base, optimizer=adam(3e-3), batch=128, steps=lab.pick(400, 350)),
    }


def sparsity(model: Any, task: Task, inputs: Tensor, targets: Tensor) -> Tensor:
    """The loss, and a price of activity."""
    return task.loss(model(inputs), targets) + 0.02 * model.penalty


def both(model: nn.Module, task: Task, inputs: Tensor, targets: Tensor) -> Tensor:
    """Classes, and the image again."""
    label, image = model(inputs)
    return task.loss(label, targets) + 0.1 * nn.functional.mse_loss(image, inputs)


def robust(model: nn.Module, task: Task, inputs: Tensor, targets: Tensor) -> Tensor:
    """The Huber loss."""
    return nn.functional.huber_loss(model(inputs), targets)


def last_layer(std: float) -> Change:
    """Weights of the last layer of this spread."""
    return lambda model: init.normal_(model[-1].weight, std=std)


def normed(norm: Callable[[nn.Module], object]) -> Change:
    """Weight or spectral norm on every linear layer."""

    def change(model: nn.Sequential) -> None:
        for each in list(model):
            if isinstance(each, nn.Linear):
                norm(each)

    return change


def _unusual(lab: Lab) -> dict[str, Recipe]:
    model = mlp(3, lab.pick(64, 80))
    base = Recipe(model=model, data=lab.images, optimizer=adam(1e-3), bar=0.8)
    regress = replace(base, data="digits", bar=0.4, optimizer=adam(3e-3), steps=300)
    return {
        "zero last layer": replace(base, model=changed(model, last_layer(0.0)), optimizer=sgd(0.05, 0.9)),
        "large last layer": replace(base, model=changed(model, last_layer(lab.pick(1.0, 0.7))), steps=240),
        "sparse ReLU by L1": replace(
            base,
            model=wrapped(mlp(2, lab.pick(128, 192)), lambda inner: Sparse(*inner.children())),
            objective=sparsity,
            steps=300,
        ),
        "mixture of experts": replace(
            base, model=experts(lab.pick(6, 8), lab.pick(32, 24)), optimizer=adam(5e-3), steps=300
        ),
        "two outputs": replace(base, model=two_heads(lab.pick(64, 96)), objective=both),
        "autoencoder": replace(
            base,
            model=autoencoder(64, lab.pick(12, 16)),
            shape=autoencoding,
            bar=0.4,
            optimizer=adam(3e-3),
            steps=300,
        ),
        "regression": replace(regress, model=mlp(2, 64), shape=regression()),
        "regression with outliers": replace(
            regress, model=mlp(2, 64), shape=regression(lab.pick(0.03, 0.02)), objective=robust
        ),
        "weight norm": replace(base, model=changed(model, normed(parametrizations.weight_norm))),
        "spectral norm": replace(
            base, model=changed(model, normed(parametrizations.spectral_norm)), optimizer=adam(3e-3)
        ),
        "pixels from 0 to 1": replace(base, shape=raw, optimizer=sgd(0.05, 0.9)),
    }
