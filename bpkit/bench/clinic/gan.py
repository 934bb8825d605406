"""Two networks against each other, each under a monitor of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch.nn import functional as F

from bpkit.bench.clinic.case import Case
from bpkit.bench.clinic.data import load
from bpkit.bench.clinic.loop import Trained, batches
from bpkit.bench.clinic.networks import features
from bpkit.bench.clinic.observers import Contender

NOISE = 16


def train_gan(case: Case, directory: Path | None, seed: int, contender: Contender) -> Trained:
    """Train generator and discriminator; both monitors' verdicts count.

    The score is the share of the pixels' mean image that the generator's mean image explains.
    """
    recipe = case.recipe
    torch.manual_seed(seed)
    task = recipe.shape(load(recipe.data, directory))
    discriminator = recipe.model(replace(task, classes=1))
    noise = torch.zeros(1, NOISE)
    generator = recipe.model(replace(task, inputs=noise, classes=features(task)))
    optimizers = recipe.optimizer(generator), recipe.optimizer(discriminator)
    observers = contender(generator, optimizers[0]), contender(discriminator, optimizers[1])
    drawn = batches(task, recipe.batch, seed)
    for step in range(1, recipe.steps + 1):
        real, _ = next(drawn)
        fake = generator(torch.randn(len(real), NOISE))
        optimizers[1].zero_grad()
        loss = F.softplus(-discriminator(real)).mean() + F.softplus(discriminator(fake.detach())).mean()
        loss.backward()
        optimizers[1].step()
        observers[1].loss(loss if "loss" in recipe.tells else None, step)
        optimizers[0].zero_grad()
        deceived = F.softplus(-discriminator(fake)).mean()
        deceived.backward()
        optimizers[0].step()
        observers[0].loss(deceived if "loss" in recipe.tells else None, step)
    verdicts = [verdict for each in observers for verdict in each.close()]
    with torch.no_grad():
        made, real = generator(torch.randn(1000, NOISE)).mean(0), task.inputs.mean(0)
    score = 1 - ((made - real).square().mean() / (real - real.mean()).square().mean()).item()
    return Trained(score, verdicts, right=frozenset(), layers=frozenset())
