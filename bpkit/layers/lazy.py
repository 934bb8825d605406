"""Lazy layers: their first call finds the size of their input, and makes them an ordinary layer.

A lazy layer is its torch twin laid over bpkit's ordinary layer, and says what it becomes:

    class LazyLinear(nn.LazyLinear, Linear):
        cls_to_become = Linear

In this order the parameters that wait for their shape, the state dict and the hooks are torch's, and
`forward`, which the first call already runs, is `Linear`'s. There is nothing to derive.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from bpkit.core.spec import LayerSpec, Sample


def lazy_spec(module: type[Any], plain: LayerSpec) -> LayerSpec:
    """The spec of a lazy layer: that of the ordinary one, whose first argument is found out.

    Args:
        module: a class derived from torch's lazy class and from `plain.module`, in this order.
        plain: the spec of the class that it becomes.
    """

    def samples() -> Iterable[Sample]:
        return (replace(sample, args=sample.args[1:]) for sample in plain.samples())

    return replace(
        plain,
        name=module.__name__,
        module=module,
        reference=module.__bases__[0],
        samples=samples,
        aliases=(),
        summary=f"{plain.summary}; input size from the first call",
    )
