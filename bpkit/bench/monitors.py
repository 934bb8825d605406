"""What watches a training in `bpkit bench watch`: bpkit's watch, and others where they are installed."""

from __future__ import annotations

import importlib.util
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Callable
from contextlib import ExitStack, redirect_stdout
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor, nn

import bpkit

if TYPE_CHECKING:
    from bpkit.bench.watch import Training

EVERY = 10  # steps from one sample of another monitor to the next, as bpkit's watch begins


def _bpkit(training: Training, stack: ExitStack, *, logs: bool) -> None:
    logdir = stack.enter_context(tempfile.TemporaryDirectory()) if logs else None
    training.watching = stack.enter_context(bpkit.watch(training.model, training.optimizer, logdir=logdir))
    for schedule in (training.watching.schedule, training.watching.light_schedule):
        schedule.use(training.clock)
    training.after = training.watching.loss


def _wandb(training: Training, stack: ExitStack) -> None:
    import wandb

    os.environ.setdefault("WANDB_SILENT", "true")
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    session = wandb.init(mode="offline", dir=folder, project="bench")
    stack.callback(session.finish)
    session.watch(training.model, log="all", log_freq=EVERY)
    training.after = lambda loss: session.log({"loss": loss.item()})


def _torchmortem(training: Training, stack: ExitStack) -> None:
    import torchmortem

    logging.getLogger("torchmortem").setLevel(logging.ERROR)
    autopsy = torchmortem.Autopsy(training.model, optimizer=training.optimizer)
    stack.enter_context(redirect_stdout(io.StringIO()))
    autopsy.attach()
    stack.callback(autopsy.detach)
    training.after = lambda loss: autopsy.step(loss=loss.item())


def _cockpit(training: Training, stack: ExitStack) -> None:
    """Its cheapest configuration; BackPACK has to know every layer that has parameters."""
    from backpack import extend
    from cockpit import Cockpit
    from cockpit.utils import schedules
    from cockpit.utils.configuration import configuration

    stack.enter_context(warnings.catch_warnings())
    warnings.simplefilter("ignore")
    extend(training.model)
    mean, each = extend(nn.CrossEntropyLoss()), extend(nn.CrossEntropyLoss(reduction="none"))
    quantities = configuration("economy", track_schedule=schedules.linear(interval=EVERY))
    cockpit = Cockpit(training.model.parameters(), quantities=quantities)

    def backward(output: Tensor, target: Tensor) -> Tensor:
        loss = mean(output, target)
        info = {
            "batch_size": len(target),
            "individual_losses": each(output, target),
            "loss": loss,
            "optimizer": training.optimizer,
        }
        with cockpit(training.count, info=info):
            loss.backward(create_graph=cockpit.create_graph(training.count))
        return loss

    training.backward = backward


MONITORS: dict[str, Callable[[Training, ExitStack], None]] = {
    "bpkit": partial(_bpkit, logs=False),
    "bpkit, with logs": partial(_bpkit, logs=True),
    "wandb": _wandb,
    "torchmortem": _torchmortem,
    "cockpit": _cockpit,
}


def available() -> list[str]:
    """Monitors that can be measured here: bpkit's, and those of the others that are installed."""
    return [
        name for name in MONITORS if name.startswith("bpkit") or importlib.util.find_spec(name) is not None
    ]
