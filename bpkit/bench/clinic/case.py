"""What a row of the clinic is: a recipe that trains, and what a monitor should say of it.

A fault is a *change* to a recipe that learns: what was sound is known, and that the change does harm can
be checked (`Case.sound`, `Recipe.bar`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, Final, Literal, TypeVar

import torch
from torch import Tensor, nn

from bpkit.bench.clinic.data import Task
from bpkit.bench.clinic.networks import Build
from bpkit.bench.clinic.shapes import Shape, vectors

Part = Literal["tuning", "reporting"]
Optimizer = torch.optim.Optimizer
Layers = Callable[[nn.Module], Collection[str]]
Rate = Callable[[int, int], float]  # step and number of steps → factor of the learning rate
Objective = Callable[[nn.Module, Task, Tensor, Tensor], Tensor]
Prepare = Callable[[nn.Module, Task], None]
Told = Literal["loss", "validation"]
T = TypeVar("T")
ALL: Final[frozenset[Told]] = frozenset({"loss", "validation"})
NOTHING: Final[frozenset[Told]] = frozenset()


def plain(model: nn.Module, task: Task, inputs: Tensor, targets: Tensor) -> Tensor:
    """The task's loss of the model's output."""
    return task.loss(model(inputs), targets)


def constant(step: int, steps: int) -> float:
    """The learning rate stays."""
    return 1.0


def adam(rate: float = 1e-3, **options: Any) -> Callable[[nn.Module], Optimizer]:
    """Adam over the parameters that want a gradient."""
    return using(torch.optim.Adam, rate, **options)


def sgd(rate: float, momentum: float = 0.0, **options: Any) -> Callable[[nn.Module], Optimizer]:
    """SGD over the parameters that want a gradient."""
    return using(torch.optim.SGD, rate, momentum=momentum, **options)


def using(kind: Callable[..., Optimizer], rate: float, **options: Any) -> Callable[[nn.Module], Optimizer]:
    """The optimizer over the parameters that want a gradient."""
    return lambda model: kind([each for each in model.parameters() if each.requires_grad], rate, **options)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a run is trained.

    Attributes:
        model: builds the network for a task.
        bar: score on held-out cases that a run that learns reaches.
        data: name of the data set.
        shape: what is made of it.
        optimizer: built for the model.
        batch: cases a step (of each micro-batch).
        steps: optimizer steps.
        prepare: what is done to model and task before the watched run, such as training it beforehand.
        objective: the loss of a batch.
        rate: factor of the learning rates at a step.
        before: called before each step with model, optimizer, step.
        alter: makes the batch of a step from what was drawn.
        clip: largest norm of the gradient.
        accumulate: micro-batches a step.
        autocast: the type that forwards run in.
        scaler: whether float16 is guarded by a `GradScaler`.
        scale: a factor of the loss that is taken out of the gradients before the step.
        zero_grad: whether gradients are cleared between steps.
        evaluate: puts the model in order for a validation.
        tells: what the user hands the monitor: the loss, the validation loss, neither.
    """

    model: Build
    bar: float
    data: str = "digits"
    shape: Shape = vectors
    optimizer: Callable[[nn.Module], Optimizer] = field(default_factory=adam)
    batch: int = 64
    steps: int = 200
    prepare: Prepare | None = None
    objective: Objective = plain
    rate: Rate = constant
    before: Callable[[nn.Module, Optimizer, int], None] | None = None
    alter: Callable[[Tensor, int], Tensor] | None = None
    clip: float | None = None
    accumulate: int = 1
    autocast: torch.dtype | None = None
    scaler: bool = False
    scale: float = 1.0
    zero_grad: bool = True
    evaluate: Callable[[nn.Module], object] = nn.Module.eval
    tells: frozenset[Told] = frozenset({"loss"})


@dataclass(frozen=True, kw_only=True)
class Case:
    """A run of the clinic.

    Attributes:
        name: of the fault or of the healthy run; one part has each once.
        recipe: how it is trained.
        kinds: the kinds of finding that count as finding the fault; empty for a healthy run.
        layers: the qualified names that are right; None where no layer is to blame, or every one.
        at: step at which the fault is put in.
        sound: the recipe without the fault.
        silent: the fault costs nothing that the score shows, such as a layer that is not trained.
        loop: `"train"`, or `"gan"` for two networks against each other.
    """

    name: str
    recipe: Recipe
    kinds: frozenset[str] = frozenset()
    layers: Layers | None = None
    at: int = 1
    sound: Recipe | None = None
    silent: bool = False
    loop: Literal["train", "gan"] = "train"

    @property
    def healthy(self) -> bool:
        return not self.kinds


def fault(
    name: str,
    kinds: str,
    base: Recipe,
    layers: Layers | None = None,
    *,
    at: int = 1,
    silent: bool = False,
    **change: Any,
) -> Case:
    """`base` with a change that breaks it; `kinds` are separated by blanks."""
    return Case(
        name=name,
        recipe=replace(base, **change),
        kinds=frozenset(kinds.split()),
        layers=layers,
        at=at,
        sound=base,
        silent=silent,
    )


@dataclass(frozen=True)
class Lab:
    """One part of the clinic: what its rows pick where the parts differ.

    Attributes:
        part: whose verdicts a diagnostic may be tuned on, or is reported on.
        has: names of the data sets at hand.
    """

    part: Part
    has: frozenset[str] = field(default=frozenset({"digits"}))

    def pick(self, tuning: T, reporting: T) -> T:
        return tuning if self.part == "tuning" else reporting

    @property
    def images(self) -> str:
        """Digits to tune on; MNIST to report on, where it is at hand."""
        return self.pick("digits", "mnist" if "mnist" in self.has else "digits")


def named(*patterns: str) -> Layers:
    """Modules whose qualified names match one of the patterns."""

    def layers(model: nn.Module) -> set[str]:
        names = [name for name, _ in model.named_modules()]
        return {name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)}

    return layers


def of_kind(kind: type[nn.Module]) -> Layers:
    """Modules of a class."""
    return lambda model: {name for name, each in model.named_modules() if isinstance(each, kind)}


def owners(model: nn.Module) -> list[str]:
    """Modules with parameters of their own, by name."""
    return [name for name, each in model.named_modules() if list(each.parameters(recurse=False))]


def nearer_input(model: nn.Module) -> set[str]:
    """The half of the layers with weights that is nearer to the input, and what stands between them."""
    names = [name for name, _ in model.named_modules()]
    weighty = owners(model)
    last = weighty[(len(weighty) - 1) // 2]
    return set(names[: names.index(last) + 1]) - {""}
