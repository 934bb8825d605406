"""The loop that trains a recipe under a monitor, as its user would have written it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from bpkit.bench.clinic.case import Case, Recipe, owners
from bpkit.bench.clinic.data import Task, load
from bpkit.bench.clinic.observers import Contender, Verdict

VALIDATE = 20  # steps from one validation to the next


@dataclass(frozen=True)
class Trained:
    """A finished run.

    Attributes:
        score: on held-out cases; NaN where the model answers with NaN.
        verdicts: what the monitor said.
        right: the modules that the case blames, by name.
        layers: all modules with parameters of their own.
    """

    score: float
    verdicts: Sequence[Verdict]
    right: frozenset[str]
    layers: frozenset[str]


def batches(task: Task, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Epoch after epoch in an order of its own, without the incomplete batch at the end."""
    generator = torch.Generator().manual_seed(seed)
    size = min(size, len(task.inputs))
    while True:
        order = torch.randperm(len(task.inputs), generator=generator)
        for index in order[: len(order) // size * size].split(size):
            yield task.inputs[index], task.targets[index]


def answer(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The output that is scored: the first of several."""
    return output if isinstance(output, Tensor) else output[0]


def held_out(model: nn.Module, task: Task, recipe: Recipe) -> tuple[Tensor, float]:
    """Validation loss and score, in the state that the recipe evaluates in; training goes on as before."""
    modes = [(each, each.training) for each in model.modules()]
    recipe.evaluate(model)
    with torch.no_grad():
        output = answer(model(task.held_inputs)).float()
    for module, training in modes:
        module.training = training
    loss = task.loss(output, task.held_targets)
    score = task.score(output, task.held_targets) if bool(output.isfinite().all()) else math.nan
    return loss, score


def train(case: Case, directory: Path | None, seed: int, contender: Contender) -> Trained:
    """Train the case's recipe from `seed` and take the monitor's verdicts."""
    recipe = case.recipe
    torch.manual_seed(seed)
    task = recipe.shape(load(recipe.data, directory))
    model = recipe.model(task)
    if recipe.prepare is not None:
        recipe.prepare(model, task)
    optimizer = recipe.optimizer(model)
    right = frozenset() if case.layers is None else frozenset(case.layers(model))
    observer = contender(model, optimizer)
    rates = [group["lr"] for group in optimizer.param_groups]
    drawn = batches(task, recipe.batch, seed)
    scaler = GradScaler("cpu") if recipe.scaler else None
    for step in range(1, recipe.steps + 1):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * recipe.rate(step, recipe.steps)
        if recipe.before is not None:
            recipe.before(model, optimizer, step)
        loss = _step(recipe, task, model, optimizer, drawn, step, scaler)
        observer.loss(loss if "loss" in recipe.tells else None, step)
        if "validation" in recipe.tells and step % VALIDATE == 0:
            observer.validation(held_out(model, task, recipe)[0])
    verdicts = observer.close()
    _, score = held_out(model, task, recipe)
    return Trained(score, verdicts, right, frozenset(owners(model)))


def _step(
    recipe: Recipe,
    task: Task,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    drawn: Iterator[tuple[Tensor, Tensor]],
    step: int,
    scaler: GradScaler | None,
) -> Tensor:
    if recipe.zero_grad:
        optimizer.zero_grad()
    total = torch.zeros(())
    for _ in range(recipe.accumulate):
        inputs, targets = next(drawn)
        if recipe.alter is not None:
            inputs = recipe.alter(inputs, step)
        with torch.autocast("cpu", recipe.autocast, enabled=recipe.autocast is not None):
            loss = recipe.objective(model, task, inputs, targets) / recipe.accumulate
        scaled = loss * recipe.scale if scaler is None else scaler.scale(loss)
        scaled.backward()
        total = total + loss.detach()
    if scaler is not None:
        scaler.unscale_(optimizer)
    if recipe.scale != 1.0:
        for gradient in (each.grad for each in model.parameters() if each.grad is not None):
            gradient /= recipe.scale
    if recipe.clip is not None:
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()
    return total
