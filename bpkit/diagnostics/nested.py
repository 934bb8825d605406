"""The tensors in what a module is given or gives, however they are nested."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils import _pytree


def tensors(value: Any, *, integers: bool = False) -> list[Tensor]:
    """The tensors with a gradient's type in what a module was given or gave, however they are nested.

    With `integers` those without one as well.
    """
    return [
        leaf
        for leaf in _flat(value)
        if isinstance(leaf, Tensor) and (integers or leaf.is_floating_point() or leaf.is_complex())
    ]


def _flat(value: Any) -> list[Any]:
    """The leaves; of torch's own walk the plain cases, five times as fast."""
    kind = type(value)
    if isinstance(value, Tensor) or value is None:
        return [value]
    if kind is tuple or kind is list:
        return [leaf for each in value for leaf in _flat(each)]
    if kind is dict:
        return [leaf for each in value.values() for leaf in _flat(each)]
    return _pytree.tree_leaves(value)
