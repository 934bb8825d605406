"""The built-in losses, handed in through the hook that every plugin uses."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from bpkit.core.spec import LossSpec
from bpkit.losses import (
    binary,
    cross_entropy,
    ctc,
    embedding,
    likelihood,
    margin,
    multilabel_soft_margin,
    nll,
    pointwise,
)
from bpkit.plugins.hookspecs import hookimpl

PAGES: tuple[Any, ...] = (
    pointwise,
    likelihood,
    cross_entropy,
    nll,
    binary,
    margin,
    multilabel_soft_margin,
    embedding,
    ctc,
)
if hasattr(nn, "LinearCrossEntropyLoss"):  # younger than the oldest torch that bpkit runs on
    from bpkit.losses import linear_cross_entropy

    PAGES = (*PAGES, linear_cross_entropy)


@hookimpl
def bpkit_losses() -> Iterable[LossSpec]:
    """The specs of every page, in the order of `PAGES`."""
    return [spec for page in PAGES for spec in page.SPECS]
