"""What a run writes down: its losses, gathered, and the figures for TensorBoard."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bpkit.tensorboard import Writer


class Journal:
    """Gathers losses and logs their mean every `every` steps, so that no step waits for a device.

    Args:
        writer: where the figures go; None keeps the loss alone.
        every: steps between two logged losses.

    Attributes:
        loss: mean over the steps logged last, NaN before the first.
    """

    def __init__(self, writer: Writer | None, every: int) -> None:
        self.writer, self.every, self.loss = writer, every, math.nan
        self._losses: list[Any] = []  # numbers, or tensors where reading one would wait

    def note(self, loss: Tensor) -> bool:
        """Keep a batch's loss; False if it is not finite, which an accelerator is asked seldom."""
        waits = loss.device.type != "cpu"
        self._losses.append(loss.detach() if waits else loss.item())
        return (waits and len(self._losses) < self.every) or math.isfinite(self._losses[-1])

    def log(self, step: int, rate: float) -> None:
        """After a step: loss and learning rate, if it is the turn of this one."""
        if step % self.every and not math.isnan(self.loss):
            return
        self.loss = float(sum(self._losses)) / len(self._losses)
        self._losses.clear()
        if self.writer is not None:
            self.writer.add_scalar("loss/train", self.loss, step)
            self.writer.add_scalar("learning_rate", rate, step)

    def validated(self, step: int, metrics: Mapping[str, float]) -> None:
        """The figures of the validation data."""
        if self.writer is not None:
            for name, value in metrics.items():
                self.writer.add_scalar(f"{name}/validation", value, step)

    def close(self) -> None:
        """Finish the logs."""
        if self.writer is not None:
            self.writer.close()
            self.writer = None
