"""Faults of the gradient on its way: it dies out or grows, over depth, over time, by the rate."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import nn
from torch.nn import init

from bpkit.bench.clinic.case import (
    NOTHING,
    Case,
    Lab,
    Objective,
    Recipe,
    adam,
    fault,
    named,
    nearer_input,
    sgd,
)
from bpkit.bench.clinic.networks import Build, changed, mlp, residual
from bpkit.bench.clinic.sequences import recurrent, transformer
from bpkit.bench.clinic.shapes import lagged, rows


def flow(lab: Lab) -> Iterator[Case]:
    """Vanishing and exploding gradients."""
    yield from _vanishing(lab)
    yield from _exploding(lab)
    yield from _by_rate(lab)


def _vanishing(lab: Lab) -> Iterator[Case]:
    width, depth = lab.pick(64, 48), lab.pick(10, 14)
    deep = Recipe(
        model=mlp(depth, width),
        data=lab.images,
        optimizer=lab.pick(sgd(0.05, 0.9), adam(2e-3)),
        bar=0.75,
        steps=240,
    )
    sigmoid = mlp(depth, width, nn.Sigmoid, gain=None)
    yield fault("vanishing by sigmoid", "vanishing", deep, nearer_input, model=sigmoid)
    yield fault(
        "vanishing by sigmoid, no loss told",
        "vanishing",
        deep,
        nearer_input,
        model=sigmoid,
        optimizer=lab.pick(adam(1e-3), sgd(0.1)),
        tells=NOTHING,
    )
    small = mlp(depth, width, gain=lab.pick(0.1, 0.3))
    yield fault("vanishing by small weights", "vanishing", deep, nearer_input, model=small)
    tanh = mlp(lab.pick(30, 40), width, nn.Tanh, gain=lab.pick(0.6, 0.7))
    yield fault("vanishing by depth", "vanishing", deep, nearer_input, model=tanh, optimizer=sgd(0.05, 0.9))
    lag = Recipe(
        model=recurrent(nn.GRU, lab.pick(48, 40)),
        shape=lagged(lab.pick(28, 32)),
        optimizer=adam(5e-3),
        bar=0.4,
        steps=240,
        clip=1.0,
    )
    yield fault(
        "vanishing in time",
        "vanishing",
        lag,
        named("recurrent"),
        model=recurrent(nn.RNN, lab.pick(48, 40), gain=0.2),
    )
    yield fault(
        "vanishing in time, LSTM",
        "vanishing saturated",
        lag,
        named("recurrent"),
        model=_forgetful(lab.pick(48, 40)),
    )


def _forgetful(width: int) -> Build:
    """An LSTM whose forget gates begin shut."""

    def shut(model: nn.Module) -> None:
        init.constant_(model.get_parameter("recurrent.bias_ih_l0")[width : 2 * width], -4.0)

    return changed(recurrent(nn.LSTM, width), shut)


def _exploding(lab: Lab) -> Iterator[Case]:
    width, depth = lab.pick(64, 80), lab.pick(14, 10)
    deep = Recipe(
        model=mlp(depth, width), data=lab.images, optimizer=lab.pick(sgd(0.02, 0.9), adam(1e-3)), bar=0.75
    )
    large = mlp(depth, width, gain=lab.pick(4, 6))
    yield fault("exploding by large weights", "exploding divergence nonfinite", deep, model=large)
    chaotic = mlp(lab.pick(20, 16), width, nn.Tanh, gain=lab.pick(4, 5))
    yield fault("exploding by chaotic tanh", "exploding saturated", deep, model=chaotic)
    recurrence = Recipe(
        model=recurrent(nn.GRU, lab.pick(48, 64)),
        shape=lagged(lab.pick(24, 32)),
        optimizer=adam(5e-3),
        bar=0.5,
        clip=1.0,
        steps=240,
    )
    yield fault(
        "exploding by recurrence",
        "exploding nonfinite divergence",
        recurrence,
        named("recurrent"),
        model=recurrent(nn.RNN, lab.pick(48, 64), gain=lab.pick(2.5, 2.2), nonlinearity="relu"),
        optimizer=lab.pick(sgd(0.05), adam(1e-3)),
        clip=None,
    )
    stream = Recipe(
        model=residual(lab.pick(24, 18), lab.pick(48, 64)),
        data=lab.images,
        optimizer=sgd(0.02, 0.9),
        bar=0.75,
    )
    yield fault(
        "exploding in a residual stream",
        "exploding divergence nonfinite",
        stream,
        model=residual(lab.pick(24, 18), lab.pick(48, 64), norm=False, gain=math.sqrt(2)),
    )


def _by_rate(lab: Lab) -> Iterator[Case]:
    kinds = "exploding divergence update_ratio nonfinite dead"
    simple = Recipe(
        model=mlp(3, lab.pick(64, 96)),
        data=lab.images,
        optimizer=lab.pick(sgd(0.05), sgd(0.02, 0.9)),
        bar=0.8,
    )
    yield fault("exploding by rate", kinds, simple, optimizer=lab.pick(sgd(10), sgd(3, 0.9)))
    yield fault(
        "rate too high with Adam",
        kinds + " plateau saturated",
        Recipe(model=transformer(2, 32), shape=rows, optimizer=adam(2e-3), bar=0.6, steps=240),
        optimizer=adam(lab.pick(0.6, 1.0)),
    )
    yield fault(
        "rate too high with Adam, MLP",
        kinds + " plateau",
        simple,
        optimizer=adam(lab.pick(1.0, 0.5)),
    )
    late = lab.pick(120, 150)
    yield fault(
        "divergence by a late schedule bug",
        kinds,
        simple,
        at=late,
        steps=240,
        rate=lambda step, steps: 200.0 if step >= late else 1.0,
    )
    yield fault("loss scaled by 1e4", kinds + " scale", simple, objective=_times(1e4))
    yield fault("loss of the wrong sign", kinds, simple, objective=_times(-1.0))
    yield fault(
        "gradients never cleared", kinds, simple, zero_grad=False, optimizer=lab.pick(sgd(0.3), sgd(0.1, 0.9))
    )


def _times(factor: float) -> Objective:
    return lambda model, task, inputs, targets: factor * task.loss(model(inputs), targets)
