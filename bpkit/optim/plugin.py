"""The built-in optimizers, handed in through the hook that every plugin uses."""

from __future__ import annotations

from collections.abc import Iterable

from bpkit.core.spec import OptimizerSpec
from bpkit.optim import adagrad, adam, adamw, rmsprop, sgd
from bpkit.plugins.hookspecs import hookimpl

PAGES = (sgd, rmsprop, adagrad, adam, adamw)


@hookimpl
def bpkit_optimizers() -> Iterable[OptimizerSpec]:
    """The specs of every page, in the order of `PAGES`."""
    return [spec for page in PAGES for spec in page.SPECS]
