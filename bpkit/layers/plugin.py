"""The built-in layers, handed in through the hook that every plugin uses."""

from __future__ import annotations

from collections.abc import Iterable

from bpkit.core.spec import LayerSpec
from bpkit.layers import (
    activations,
    batchnorm,
    conv,
    dropout,
    embedding,
    flatten,
    layernorm,
    linear,
    lstm,
    pooling,
    rnn,
    softmax,
)
from bpkit.plugins.hookspecs import hookimpl

PAGES = (
    linear,
    conv,
    pooling,
    batchnorm,
    layernorm,
    embedding,
    dropout,
    flatten,
    softmax,
    activations,
    rnn,
    lstm,
)


@hookimpl
def bpkit_layers() -> Iterable[LayerSpec]:
    """The specs of every page, in the order of `PAGES`."""
    return [spec for page in PAGES for spec in page.SPECS]
