"""`Instrument`: measures one quantity on a sampled step.

An instrument only enqueues work on the device; the probe copies the figures of all of them to the host
at once. A diagnostic names the instruments that it needs, and no other runs: what an instrument does not
override is not listened to either, so that a watch without activations hooks no module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from bpkit.diagnostics.instruments.figures import Figures
from bpkit.diagnostics.sample import Provenance
from bpkit.diagnostics.subject import Subject


class Instrument:
    """Reads one quantity of every parameter, of every module, or of the model; overrides what it reads by.

    A sampled step is, in order: `arm`, then `on_input` and `on_output` for every call of a module,
    `on_delta_out` and `on_delta_in` for it in the backward, `on_backward` after each backward (several
    where gradients accumulate), `before_step`, `after_step`, `read`.

    Class attributes:
        of: what there is one figure of.
        columns: names of the numbers that a figure consists of; none for a single number.
        provenance: what the figures are of.
        light: it hooks no forward and no backward and copies no parameter: a light sample, with such
            instruments alone, costs a fraction of a full one, and can be taken more often.
        integers: whether `on_input` is given tensors of integers as well, such as indices.

    Attributes:
        listen: `listen(tensor, hook)` calls `hook` with ∂L/∂tensor, for who has to know of which call of a
            module an error is; set by who calls the methods below.

    Args:
        subject: the model that is watched.
    """

    of: ClassVar[Literal["parameters", "modules", "model"]] = "parameters"
    columns: ClassVar[tuple[str, ...]] = ()
    provenance: Provenance = Provenance("at step")
    light: ClassVar[bool] = False
    integers: ClassVar[bool] = False

    listen: Callable[[Tensor, Callable[[Tensor], None]], None]

    def __init__(self, subject: Subject) -> None:
        self.subject = subject

    def arm(self) -> None:
        """A sampled step begins, ahead of its forward."""

    def on_input(self, call: int, place: int, module: nn.Module, inputs: list[Tensor]) -> None:
        """A module is about to run on these tensors, not yet written over, in this call of the model."""

    def on_output(self, call: int, place: int, module: nn.Module, outputs: list[Tensor]) -> None:
        """It has run, and gave these."""

    def on_delta_out(self, call: int, place: int, delta: Tensor) -> None:
        """∂L/∂(an output of the module), all paths together."""

    def on_delta_in(self, call: int, place: int, delta: Tensor) -> None:
        """∂L/∂(an input of the module), by the paths through this call alone."""

    def on_backward(self) -> None:
        """A backward is over: gradients are accumulated, and reduced where that is done in the backward."""

    def alarmed(self, optimizer: torch.optim.Optimizer) -> bool:
        """Called before every step, sampled or not: whether this one must be sampled from here on."""
        return False

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """The parameters are about to move."""

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """The parameters have moved; the gradients are still there."""

    def read(self, lived: frozenset[int]) -> Figures:
        """A figure (a 0-d tensor or number, or one with `columns`, or None) for each of what it is `of`.

        A `Batch` where figures of many are to be had by fewer kernels than one apiece.

        Args:
            lived: the calls of the model that a backward came back through; others were for evaluation.
        """
        raise NotImplementedError

    def close(self) -> None:
        """The watch is over: take permanent hooks away."""
