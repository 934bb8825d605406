"""Coverage: how much of an autograd graph is hand-written, counted on the graph itself."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from bpkit.core.errors import BpkitError
from bpkit.core.graph import kind, name, nodes
from bpkit.core.structure import tensors


@dataclass(frozen=True)
class Coverage:
    """The nodes behind a tensor, by who wrote their backward.

    Attributes:
        handwritten: nodes of a `bpkit.core.Function`.
        native: nodes of torch's own derivatives.
        views: nodes of torch's views, which are no arithmetic; they count for neither side.
        opaque: nodes that cannot be looked into: another `autograd.Function`, a compiled graph.
        by_op: how many of each, by the name of the operation; those that are not hand-written first,
            the most frequent ahead.
    """

    handwritten: int
    native: int
    views: int
    opaque: int
    by_op: dict[str, int] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """Hand-written nodes among all but views; 1 for a graph without any."""
        counted = self.handwritten + self.native + self.opaque
        return self.handwritten / counted if counted else 1.0

    def __str__(self) -> str:
        text = (
            f"{self.share:.1%} hand-written: {self.handwritten} nodes, {self.native} native, "
            f"{self.opaque} opaque, {self.views} views"
        )
        others = {op: count for op, count in self.by_op.items() if not op.startswith("bpkit.")}
        if self.native or self.opaque:
            text += "\n  " + ", ".join(f"{count} {op}" for op, count in others.items())
        return text


def coverage(output: Any) -> Coverage:
    """Count the graph behind `output`, a loss as a rule.

    Args:
        output: a tensor with a graph, or a tuple, list or dict with such tensors in it.

    Returns:
        The count. In `by_op` a hand-written node is called `bpkit.` and its Function's name, a native one
        what torch calls it (`Mul`); an opaque one has `(opaque)` behind its name. Views and the
        parameters themselves are left out.

    Raises:
        BpkitError: nothing in `output` has a graph.
    """
    roots = [each for each in tensors(output) if each.grad_fn is not None]
    if not roots:
        raise BpkitError(
            "coverage: the output has no graph; give it what a forward made outside torch.no_grad, "
            "from parameters or inputs that require a gradient"
        )
    kinds: Counter[str] = Counter()
    ours: Counter[str] = Counter()
    others: Counter[str] = Counter()
    for node in nodes(roots):
        which = kind(node)
        kinds[which] += 1
        if which == "handwritten":
            ours[f"bpkit.{name(node).removesuffix('Function')}"] += 1
        elif which in ("native", "opaque"):
            others[name(node) + (" (opaque)" if which == "opaque" else "")] += 1
    by_op = dict(others.most_common()) | dict(ours.most_common())
    return Coverage(kinds["handwritten"], kinds["native"], kinds["view"], kinds["opaque"], by_op)
