"""`bpkit bench watch`: what watching costs a loop, beside other monitors, in one process.

Every contender trains its own copy of the network; they take turns, a stretch of steps each, so that what
disturbs the machine disturbs all alike. The first stretches, in which a watch takes samples whatever its
budget, are told apart from the long run.
"""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bpkit.bench.monitors import MONITORS
from bpkit.bench.networks import ResNet

STRETCH = 20  # steps
FIRST = 200  # steps that a run begins with: a budget is a share of a long one


@dataclass(frozen=True)
class Row:
    """One network under one monitor.

    Attributes:
        network: which.
        monitor: out of `bpkit.bench.monitors`.
        step: median seconds of a bare step.
        beginning: time of the first 200 steps over that of a bare loop.
        long_run: the same of the steps after them; NaN for both where the monitor breaks the training.
        said: the share of the time that the monitor itself reports, if it does.
        failed: what it raised, if it did.
    """

    network: str
    monitor: str
    step: float
    beginning: float
    long_run: float
    said: float | None = None
    failed: str = ""


def _backward(output: Tensor, target: Tensor) -> Tensor:
    loss = F.cross_entropy(output, target)
    loss.backward()
    return loss


@dataclass
class Training:
    """A network in training, with what watches it.

    Attributes:
        model: the network.
        batch: the one that it is trained on.
        watching: a watch of bpkit's.
        backward: takes output and target to the loss, whose backward it runs.
        after: called with the loss behind each step.
        count: steps so far.
    """

    model: nn.Module
    batch: tuple[Tensor, Tensor]
    watching: Any = None
    backward: Callable[[Tensor, Tensor], Tensor] = _backward
    after: Callable[[Tensor], object] = lambda loss: None
    count: int = 0
    seconds: list[float] = field(default_factory=list)
    begun: float = 0.0
    had: float = 0.0

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-4)

    def clock(self) -> float:
        """Seconds of this run's own turns."""
        return self.had + (time.perf_counter() - self.begun if self.begun else 0.0)

    def steps(self, count: int) -> None:
        """Train that many steps, and note the seconds of one."""
        inputs, target = self.batch
        self.begun = start = time.perf_counter()
        for _ in range(count):
            self.optimizer.zero_grad()
            loss = self.backward(self.model(inputs), target)
            self.optimizer.step()
            self.after(loss)
            self.count += 1
        seconds = time.perf_counter() - start
        self.had += seconds
        self.seconds.append(seconds / count)


class LastState(nn.Module):
    """An LSTM that classifies by its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(64, 128, batch_first=True), nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class Pooled(nn.Module):
    """A pre-LN transformer encoder of six layers that classifies by its mean."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(128, 4, 512, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(1))


def _mlp() -> nn.Module:
    sizes = [256, 512, 512, 512]
    layers = [each for i, o in pairwise(sizes) for each in (nn.Linear(i, o), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(512, 10))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "MLP": (_mlp, (128, 256)),
    "ResNet": (partial(ResNet, 16), (16, 3, 32, 32)),
    "transformer": (Pooled, (8, 64, 128)),
    "LSTM": (LastState, (32, 48, 64)),
}


def measure(networks: Iterable[str], monitors: Sequence[str], steps: int) -> Iterator[Row]:
    """Rows of each network under each monitor.

    Args:
        networks: names out of `NETWORKS`.
        monitors: names out of `bpkit.bench.monitors.available()`.
        steps: of each loop, in all; the first 200 are the beginning.
    """
    level = logging.getLogger("bpkit").level
    logging.getLogger("bpkit").setLevel(logging.CRITICAL)  # on noise, verdicts are beside the point
    try:
        for name in networks:
            yield from _measure(name, monitors, steps)
    finally:
        logging.getLogger("bpkit").setLevel(level)


def _measure(name: str, monitors: Sequence[str], steps: int) -> Iterator[Row]:
    make, shape = NETWORKS[name]
    generator = torch.Generator().manual_seed(0)
    batch = torch.randn(shape, generator=generator), torch.randint(10, shape[:1], generator=generator)
    runs, failed = {}, {}
    with ExitStack() as stack:
        for monitor in ("bare", *monitors):
            torch.manual_seed(0)
            runs[monitor] = Training(make(), batch)
            try:
                if monitor != "bare":
                    MONITORS[monitor](runs[monitor], stack)
                runs[monitor].steps(1)
            except Exception as error:  # its hooks break the training, or it does not know a layer
                failed[monitor] = f"{type(error).__name__}: {error}".splitlines()[0]
                del runs[monitor]
                continue
            runs[monitor].seconds.clear()
        for _ in range(steps // STRETCH):
            for run in runs.values():
                run.steps(STRETCH)
    bare, first = runs["bare"].seconds, FIRST // STRETCH
    for monitor in monitors:
        if monitor not in runs:
            yield Row(name, monitor, statistics.median(bare), math.nan, math.nan, failed=failed[monitor])
            continue
        seconds, watching = runs[monitor].seconds, runs[monitor].watching
        yield Row(
            name,
            monitor,
            statistics.median(bare),
            sum(seconds[:first]) / sum(bare[:first]),
            # A mean: what comes on few steps is what a monitor costs; of ratios, against a drifting machine.
            statistics.fmean(a / b for a, b in zip(seconds[first:], bare[first:], strict=True)),
            None if watching is None else watching.share,
        )
