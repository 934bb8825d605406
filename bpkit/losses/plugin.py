"""The built-in losses, handed in through the hook that every plugin uses."""

from __future__ import annotations

from collections.abc import Iterable

from bpkit.core.spec import LossSpec
from bpkit.losses import binary, cross_entropy, ctc, embedding, linear_cross_entropy, margin, nll, pointwise
from bpkit.plugins.hookspecs import hookimpl

PAGES = (pointwise, cross_entropy, linear_cross_entropy, nll, binary, margin, embedding, ctc)


@hookimpl
def bpkit_losses() -> Iterable[LossSpec]:
    """The specs of every page, in the order of `PAGES`."""
    return [spec for page in PAGES for spec in page.SPECS]
