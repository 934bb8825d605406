"""How a recipe looks at its data: the same cases as vectors, images or sequences, or with a fault in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from bpkit.bench.clinic.data import Task, explained

Shape = Callable[[Task], Task]


def each_input(change: Callable[[Tensor], Tensor]) -> Shape:
    """Change the inputs of both parts alike."""
    return lambda task: replace(task, inputs=change(task.inputs), held_inputs=change(task.held_inputs))


def standardised(task: Task) -> Task:
    """Mean 0 and spread 1 over all pixels of the training part."""
    mean, spread = task.inputs.mean(), task.inputs.std()
    return each_input(lambda inputs: (inputs - mean) / spread)(task)


def chained(*shapes: Shape) -> Shape:
    """One after the other."""

    def shape(task: Task) -> Task:
        for each in shapes:
            task = each(task)
        return task

    return shape


raw = each_input(lambda inputs: inputs.flatten(1))  # pixels in [0, 1], as vectors
images = standardised  # [n, 1, height, width]
vectors = chained(standardised, raw)
rows = chained(standardised, each_input(lambda inputs: inputs.flatten(1, 2)))  # a sequence of rows


def scaled(factor: float, offset: float = 0.0) -> Shape:
    """Vectors out of their range: pixels times `factor`, plus `offset`."""
    return chained(raw, each_input(lambda inputs: inputs * factor + offset))


def lagged(steps: int) -> Shape:
    """Rows, then `steps` blank ones: the answer is asked for long after the image was seen."""
    return chained(rows, each_input(lambda inputs: F.pad(inputs, (0, 0, 0, steps))))


def few(cases: int, shape: Shape = vectors) -> Shape:
    """So few cases to train on that they can be learnt by heart."""
    return chained(
        shape, lambda task: replace(task, inputs=task.inputs[:cases], targets=task.targets[:cases])
    )


def mislabelled(share: float, shape: Shape = vectors) -> Shape:
    """A share of the training labels is drawn anew."""

    def shuffle(task: Task) -> Task:
        generator = torch.Generator().manual_seed(0)
        wrong = torch.rand(task.targets.shape, generator=generator) < share
        drawn = torch.randint(task.classes, task.targets.shape, generator=generator)
        return replace(task, targets=torch.where(wrong, drawn, task.targets))

    return chained(shape, shuffle)


def autoencoding(task: Task) -> Task:
    """The target is the image itself, in [0, 1]."""
    task = raw(task)
    return replace(
        task,
        targets=task.inputs,
        held_targets=task.held_inputs,
        classes=task.inputs.shape[1],
        loss=F.mse_loss,
        score=explained,
    )


def regression(outliers: float = 0.0) -> Shape:
    """From the upper half of an image the ink of each row of its lower half; some targets far off."""

    def shape(task: Task) -> Task:
        half = task.inputs.shape[2] // 2

        def ink(images: Tensor) -> Tensor:
            return images[:, 0, half:].mean(-1) * 4

        targets = ink(task.inputs)
        generator = torch.Generator().manual_seed(0)
        off = torch.rand(len(targets), 1, generator=generator) < outliers
        targets = targets + 6 * off * torch.randn(targets.shape, generator=generator)
        upper = standardised(each_input(lambda images: images[:, :, :half].flatten(1))(task))
        return replace(
            upper,
            targets=targets,
            held_targets=ink(task.held_inputs),
            classes=half,
            loss=F.mse_loss,
            score=explained,
        )

    return shape
