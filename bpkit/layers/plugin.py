"""The built-in layers, handed in through the hook that every plugin uses."""

from __future__ import annotations

from collections.abc import Iterable

from bpkit.core.spec import LayerSpec
from bpkit.layers import (
    activations,
    adaptiveavg,
    adaptivemax,
    adaptivesoftmax,
    avgpool,
    batchnorm,
    bilinear,
    cells,
    conv,
    conv_transpose,
    distance,
    dropout,
    embedding,
    embedding_bag,
    fold,
    fractionalpool,
    gates,
    groupnorm,
    gru,
    instancenorm,
    interpolate,
    layernorm,
    linear,
    lppool,
    lstm,
    maxpool,
    maxunpool,
    multihead,
    padding,
    rectifiers,
    responsenorm,
    rmsnorm,
    rnn,
    shuffling,
    softmax,
    syncbatchnorm,
    transformer,
    views,
)
from bpkit.plugins.hookspecs import hookimpl

PAGES = (
    linear,
    bilinear,
    conv,
    conv_transpose,
    fold,
    padding,
    avgpool,
    maxpool,
    adaptiveavg,
    adaptivemax,
    lppool,
    fractionalpool,
    maxunpool,
    interpolate,
    batchnorm,
    syncbatchnorm,
    instancenorm,
    groupnorm,
    layernorm,
    rmsnorm,
    responsenorm,
    embedding,
    embedding_bag,
    dropout,
    views,
    shuffling,
    softmax,
    rectifiers,
    activations,
    gates,
    rnn,
    lstm,
    gru,
    cells,
    multihead,
    transformer,
    adaptivesoftmax,
    distance,
)


@hookimpl
def bpkit_layers() -> Iterable[LayerSpec]:
    """The specs of every page, in the order of `PAGES`."""
    return [spec for page in PAGES for spec in page.SPECS]
