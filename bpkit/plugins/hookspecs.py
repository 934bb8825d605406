"""Every hook a plugin may implement, and when it is called.

A plugin is a module or an object with functions decorated by `@bpkit.hookimpl`, named as below; it
takes any subset of a hook's arguments, by name. Hooks that provide specs are called once, when the
plugin is registered. Training events are called by the `Trainer` in the order of one step:

    fit_start, (batch, after_forward, after_backward, before_step, after_step)*, evaluate_end,
    checkpoint, fit_end

Versioning: `VERSION` grows by one in its second place when a hook or an argument is added, and in
its first when one is taken away. What is to go stays for at least two minor releases of bpkit, and
a plugin that still implements it is told so by a `DeprecationWarning` that names the replacement.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pluggy

from bpkit.core.spec import (
    DiagnosticSpec,
    LayerSpec,
    LossSpec,
    OptimizerSpec,
    RecipeSpec,
    RegularizerSpec,
    RuleSpec,
)

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from bpkit.train.trainer import Trainer

VERSION = "1.0"

hookspec = pluggy.HookspecMarker("bpkit")
hookimpl = pluggy.HookimplMarker("bpkit")


# --- what there is: called once, at registration --------------------------------------------------


@hookspec
def bpkit_layers() -> Iterable[LayerSpec]:
    """Layers: modules with a hand-written backward, and the torch classes they stand in for."""


@hookspec
def bpkit_losses() -> Iterable[LossSpec]:
    """Losses, for `Trainer(loss=name)`."""


@hookspec
def bpkit_optimizers() -> Iterable[OptimizerSpec]:
    """Optimizers, for `Trainer(optimizer=name)`."""


@hookspec
def bpkit_regularizers() -> Iterable[RegularizerSpec]:
    """Penalties on parameters, for `Trainer(regularizers=[name])`."""


@hookspec
def bpkit_diagnostics() -> Iterable[DiagnosticSpec]:
    """Diagnostics, for `bpkit.watch` and the Trainer alike."""


@hookspec
def bpkit_recipes() -> Iterable[RecipeSpec]:
    """Runs as data, for `bpkit train NAME`."""


@hookspec
def bpkit_rules() -> Iterable[RuleSpec]:
    """Other backwards for existing layers, for `bpkit.convert(model, rule=name)`."""


# --- what happens: called by the Trainer ----------------------------------------------------------


@hookspec
def bpkit_fit_start(trainer: Trainer) -> None:
    """Model, optimizer and device are ready; no batch has been read."""


@hookspec
def bpkit_batch(trainer: Trainer, inputs: Any, target: Any) -> None:
    """A batch is on the device; the forward comes next."""


@hookspec
def bpkit_after_forward(trainer: Trainer, output: Any, loss: Tensor) -> None:
    """`loss` (0-d, penalties apart) is known; the backward comes next."""


@hookspec
def bpkit_after_backward(trainer: Trainer) -> None:
    """Gradients are final: unscaled, reduced, accumulated, with penalties, before clipping."""


@hookspec
def bpkit_before_step(trainer: Trainer) -> None:
    """Gradients are clipped; the optimizer's step comes next."""


@hookspec
def bpkit_after_step(trainer: Trainer) -> None:
    """Parameters have moved and `trainer.step` counts this step; gradients are still there."""


@hookspec
def bpkit_evaluate_end(trainer: Trainer, metrics: Mapping[str, float]) -> None:
    """An evaluation is over; `metrics` holds its loss and metrics by name."""


@hookspec
def bpkit_checkpoint(trainer: Trainer, path: Path) -> None:
    """A checkpoint has been written to `path`, whole."""


@hookspec
def bpkit_nonfinite(trainer: Trainer, loss: Tensor) -> None:
    """The loss is not finite; the step is about to be abandoned with an error."""


@hookspec
def bpkit_fit_end(trainer: Trainer) -> None:
    """Training is over: by its end, by Ctrl-C or by an error."""


PROVIDING = (
    "bpkit_layers",
    "bpkit_losses",
    "bpkit_optimizers",
    "bpkit_regularizers",
    "bpkit_diagnostics",
    "bpkit_recipes",
    "bpkit_rules",
)
EVENTS = (
    "bpkit_fit_start",
    "bpkit_batch",
    "bpkit_after_forward",
    "bpkit_after_backward",
    "bpkit_before_step",
    "bpkit_after_step",
    "bpkit_evaluate_end",
    "bpkit_checkpoint",
    "bpkit_nonfinite",
    "bpkit_fit_end",
)
