"""Faults of units and numbers: dead, saturated, at the wrong scale, in the wrong mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import nn
from torch.nn import init

from bpkit.bench.clinic.case import ALL, Case, Lab, Optimizer, Recipe, adam, fault, named, of_kind, sgd
from bpkit.bench.clinic.networks import changed, cnn, mlp
from bpkit.bench.clinic.shapes import images, scaled


def units(lab: Lab) -> Iterator[Case]:
    """Dead and saturated units, wrong scales and modes."""
    yield from _dead(lab)
    yield from _saturated(lab)
    yield from _symmetric(lab)
    yield from _modes(lab)


def bias(layer: str, value: float) -> Callable[[nn.Module], object]:
    """Set all biases of a layer."""
    return lambda model: init.constant_(model.get_parameter(f"{layer}.bias"), value)


def _dead(lab: Lab) -> Iterator[Case]:
    dense = mlp(lab.pick(4, 5), lab.pick(64, 96))
    simple = Recipe(model=dense, data=lab.images, optimizer=lab.pick(sgd(0.05, 0.9), adam(1e-3)), bar=0.8)
    layer = lab.pick("2", "4")
    yield fault(
        "dead by bias",
        "dead",
        simple,
        named(layer, str(int(layer) + 1)),
        model=changed(dense, bias(layer, -20.0)),
    )
    convolution = cnn(lab.pick(8, 12), 3)
    yield fault(
        "dead convolution by bias",
        "dead",
        Recipe(model=convolution, data=lab.images, shape=images, optimizer=adam(2e-3), bar=0.7, batch=32),
        named(*lab.pick(("3", "4"), ("5", "6"))),
        model=changed(convolution, bias(lab.pick("3", "5"), -20.0)),
    )
    spike = lab.pick(101, 84)

    def jump(step: int, steps: int) -> float:
        return lab.pick(200.0, 1000.0) if step == spike else 1.0

    yield fault("dead by a spike", "dead divergence", simple, at=spike, rate=jump)
    norm = mlp(3, lab.pick(64, 48), norm=nn.BatchNorm1d)
    shift = changed(norm, bias("1", -12.0))
    yield fault(
        "dead by BatchNorm's shift", "dead", Recipe(model=norm, bar=0.8), named("1", "2"), model=shift
    )


def _saturated(lab: Lab) -> Iterator[Case]:
    squash = lab.pick(nn.Tanh, nn.Sigmoid)
    width = lab.pick(64, 96)
    shallow = Recipe(model=mlp(2, width, squash, gain=1.0), data=lab.images, optimizer=adam(2e-3), bar=0.86)
    yield fault(
        "saturation by weights",
        "saturated",
        shallow,
        model=mlp(3, width, squash, gain=lab.pick(30, 60)),
    )
    yield fault(
        "saturation by inputs",
        "saturated scale",
        shallow,
        named("0", "1"),
        shape=scaled(lab.pick(255.0, 400.0)),
        optimizer=sgd(0.01),
    )
    yield fault(
        "saturation by bias",
        "saturated dead",
        shallow,
        named("2", "3"),
        model=changed(mlp(2, width, squash, gain=1.0), bias("2", lab.pick(12.0, 30.0))),
    )
    relu = Recipe(
        model=mlp(3, width), data=lab.images, optimizer=lab.pick(sgd(0.05), sgd(0.02, 0.9)), bar=0.8
    )
    kinds = "scale exploding divergence dead nonfinite"
    yield fault("inputs 255 times too large", kinds, relu, shape=scaled(255.0))
    yield fault("inputs of mean 100", kinds, relu, shape=scaled(1.0, 100.0))


def _symmetric(lab: Lab) -> Iterator[Case]:
    dense = mlp(3, lab.pick(64, 48))
    simple = Recipe(model=dense, data=lab.images, optimizer=lab.pick(sgd(0.05, 0.9), adam(1e-3)), bar=0.8)
    where = lab.pick("2", "4")

    def fill(value: float, *layers: str) -> Callable[[nn.Module], object]:
        def change(model: nn.Module) -> None:
            for layer in layers:
                init.constant_(model.get_parameter(f"{layer}.weight"), value)
                init.zeros_(model.get_parameter(f"{layer}.bias"))

        return change

    yield fault(
        "hidden layers initialised with zeros",
        "zero vanishing dead disconnected",
        simple,
        model=changed(dense, fill(0.0, where, "6")),
    )
    yield fault(
        "constant initialisation",
        "zero mode scale plateau",
        simple,
        model=changed(dense, fill(lab.pick(0.02, 0.01), "0", "2", "4")),
    )


def _modes(lab: Lab) -> Iterator[Case]:
    norm = cnn(lab.pick(8, 12), 3, norm=nn.BatchNorm2d)
    convolution = Recipe(
        model=norm, data=lab.images, shape=images, optimizer=sgd(0.05, 0.9), bar=0.8, batch=32
    )

    def evaluating(model: nn.Module, optimizer: Optimizer, step: int) -> None:
        for each in model.modules():
            if isinstance(each, nn.BatchNorm2d):
                each.eval()

    yield fault(
        "BatchNorm in eval while training",
        "mode",
        convolution,
        of_kind(nn.BatchNorm2d),
        silent=True,
        before=evaluating,
    )
    drop = Recipe(
        model=mlp(3, lab.pick(64, 96), dropout=lab.pick(0.5, 0.4)),
        data=lab.images,
        bar=0.8,
        tells=ALL,
    )
    yield fault(
        "dropout active in validation",
        "mode",
        drop,
        of_kind(nn.Dropout),
        silent=True,
        evaluate=nn.Module.train,
    )
    yield fault(
        "batches of one with BatchNorm",
        "noise mode divergence plateau dead",
        convolution,
        batch=1,
        optimizer=sgd(0.05, 0.9),
        model=cnn(8, 3, norm=nn.BatchNorm2d),
    )
