"""What checks are run on, beside a `Case`: one class a kind, by which a check says what it applies to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bpkit.core.spec import Sample


@dataclass(frozen=True)
class OptimizerCase:
    """An optimizer, the twin that it follows, and the settings of both."""

    label: str
    optimizer: type[torch.optim.Optimizer]
    reference: type[torch.optim.Optimizer] | None
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class ModuleCase:
    """A module as an object.

    Attributes:
        make: gives a module, the same each time.
        inputs: what it is called with.
        reference: gives a module whose state is interchangeable with it, or None.
        constructs: `make` runs the constructor, and does not copy a module that is there.
    """

    label: str
    make: Callable[[], nn.Module]
    inputs: tuple[Any, ...]
    reference: Callable[[], nn.Module] | None
    constructs: bool


@dataclass(frozen=True)
class OperatorCase:
    """An operator of `torch.library`, and what it is called with."""

    label: str
    operator: Any
    inputs: tuple[Any, ...]


@dataclass(frozen=True)
class RuleCase:
    """A rule's module and the true one on a sample of the layer, and the angles allowed between them."""

    label: str
    module: type[nn.Module]
    reference: type[nn.Module]
    sample: Sample
    angle: float
    input_angle: float | None
