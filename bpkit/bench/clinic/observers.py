"""The monitors that the clinic compares, behind one small protocol."""

from __future__ import annotations

import importlib.util
import io
import logging
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

import bpkit
from bpkit.bench.clinic.thresholds import Thresholds
from bpkit.core.errors import BpkitError, unknown_name


@dataclass(frozen=True)
class Verdict:
    """What a monitor said at the severity of a warning or above.

    Attributes:
        kind: in the words of bpkit's findings; of another monitor's categories, all that may be meant.
        layers: qualified names.
        step: the first step, counted from 1.
        text: as the monitor words it.
        until: last step of the range that an analysis after the run's end names; 0 for a monitor that
            speaks while the run goes on, whose first step must not lie before the fault.
    """

    kind: frozenset[str]
    layers: tuple[str, ...]
    step: int
    text: str
    until: int = 0


class Observer(Protocol):
    """A monitor of one run."""

    def loss(self, value: Tensor | None, step: int) -> None:
        """A step is over; `value` is None where the user tells nothing."""

    def validation(self, value: Tensor) -> None: ...

    def close(self) -> Sequence[Verdict]: ...


Contender = Callable[[nn.Module, torch.optim.Optimizer], Observer]


class Watched:
    """`bpkit.watch` as a user calls it."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, budget: float = 0.03) -> None:
        self.watcher = bpkit.watch(model, optimizer, budget=budget)

    def loss(self, value: Tensor | None, step: int) -> None:
        if value is not None:
            self.watcher.loss(value)

    def validation(self, value: Tensor) -> None:
        self.watcher.validation(value)

    def close(self) -> Sequence[Verdict]:
        self.watcher.close()
        return [
            Verdict(frozenset({each.kind}), tuple(each.layers), each.step, str(each))
            for each in self.watcher.findings
            if each.severity != "info"
        ]


# What torchmortem's categories may mean in the words of bpkit's kinds, in its favour where it is open.
MORTEM = {
    "gradient_flow": "vanishing exploding dead disconnected frozen stuck zero nonfinite",
    "dead_units": "dead zero disconnected",
    "saturation": "saturated",
    "update_ratio": "update_ratio stuck frozen exploding",
    "loss_dynamics": "plateau divergence exploding nonfinite",
    "rank_collapse": "mode scale zero dead",
    "weight_norm": "exploding scale zero update_ratio divergence",
    "gradient_noise": "noise",
}


class Torchmortem:
    """torchmortem's `Autopsy` with its defaults; its report is analysed at the end."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        from torchmortem import Autopsy  # type: ignore[import-untyped,import-not-found,unused-ignore]

        logging.getLogger("torchmortem").setLevel(logging.CRITICAL)
        self.autopsy = Autopsy(model, optimizer=optimizer)
        self.autopsy.attach()

    def loss(self, value: Tensor | None, step: int) -> None:
        if value is None:
            self.autopsy.step()
        else:
            self.autopsy.step(loss=value.item())

    def validation(self, value: Tensor) -> None:
        pass  # it has no such notion

    def close(self) -> Sequence[Verdict]:
        from torchmortem.types import (  # type: ignore[import-untyped,import-not-found,unused-ignore]
            Severity,
        )

        with redirect_stdout(io.StringIO()):
            self.autopsy.detach()
        report = self.autopsy.get_report()
        return [
            Verdict(
                frozenset(MORTEM.get(each.category, each.category).split()),
                tuple(each.affected_layers),
                each.step_range[0] + 1,
                f"{each.category}: {each.title}",
                each.step_range[1] + 1,
            )
            for each in (report.findings if report else ())
            if each.severity >= Severity.WARNING
        ]


class Fixed:
    """The thresholds that SageMaker Debugger documents."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.rules = Thresholds(model, optimizer)

    def loss(self, value: Tensor | None, step: int) -> None:
        self.rules.step(None if value is None else value.item(), step)

    def validation(self, value: Tensor) -> None:
        self.rules.validation(value.item())

    def close(self) -> Sequence[Verdict]:
        self.rules.close()
        return [
            Verdict(frozenset(rule.kinds.split()), tuple(layers), step, f"{rule.name}: {', '.join(layers)}")
            for rule, (step, layers) in self.rules.found.items()
        ]


class Nothing:
    """No monitor: to see whether a run is what its row says."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        pass

    def loss(self, value: Tensor | None, step: int) -> None: ...

    def validation(self, value: Tensor) -> None: ...

    def close(self) -> Sequence[Verdict]:
        return ()


PEERS: dict[str, Contender] = {"torchmortem": Torchmortem, "thresholds": Fixed}


def contender(name: str, budget: float = 0.03) -> Contender:
    """The contender `name`; `budget` is `bpkit.watch`'s.

    Raises:
        BpkitError: an unknown name, with the nearest; one whose package is missing.
    """
    if name == "bpkit":
        return partial(Watched, budget=budget)
    if name == "nothing":
        return Nothing
    if name not in PEERS:
        raise unknown_name("contender", name, PEERS)
    if missing(name):
        raise BpkitError(f"clinic: {name} is not installed: pip install {name}")
    return PEERS[name]


def missing(name: str) -> bool:
    """Whether the contender is another's package that is not installed."""
    return name == "torchmortem" and importlib.util.find_spec(name) is None
