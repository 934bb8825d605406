"""Nested inputs and outputs as flat lists of leaves.

A layer is called with tensors, tuples of states, packed sequences, numbers; a check wants one flat
list that it can copy, cast and lay out anew, and a way back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

Rebuild = Callable[[Iterator[Any]], Any]


def flatten(value: Any) -> tuple[list[Any], Rebuild]:
    """The leaves of `value`, and the function that puts other leaves into its shape.

    Tuples, named tuples, lists, dicts and packed sequences are opened (of a packed sequence the data
    alone: its lengths are no input of the mathematics); anything else is a leaf.
    """
    if isinstance(value, PackedSequence):
        lengths = value[1:]
        return [value.data], lambda leaves: PackedSequence(next(leaves), *lengths)
    if isinstance(value, dict):
        keys = list(value)
        leaves, rebuild = flatten(list(value.values()))
        return leaves, lambda new: dict(zip(keys, rebuild(new), strict=True))
    if isinstance(value, tuple | list):
        parts = [flatten(each) for each in value]
        kind = type(value)
        make = kind._make if hasattr(kind, "_make") else kind
        return (
            [leaf for leaves, _ in parts for leaf in leaves],
            lambda new: make([rebuild(new) for _, rebuild in parts]),
        )
    return [value], next


def tensors(value: Any) -> tuple[Tensor, ...]:
    """The tensors among the leaves of `value`, in order."""
    if isinstance(value, Tensor):
        return (value,)
    if isinstance(value, PackedSequence):
        return (value.data,)
    if isinstance(value, dict):
        return tensors(tuple(value.values()))
    if isinstance(value, tuple | list):
        return tuple(tensor for each in value for tensor in tensors(each))
    return ()
