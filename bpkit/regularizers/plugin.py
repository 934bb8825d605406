"""The built-in regularizers, handed in through the hook that every plugin uses."""

from __future__ import annotations

from collections.abc import Iterable

from bpkit.core.spec import RegularizerSpec
from bpkit.plugins.hookspecs import hookimpl
from bpkit.regularizers import penalties


@hookimpl
def bpkit_regularizers() -> Iterable[RegularizerSpec]:
    """The specs of the page."""
    return penalties.SPECS
