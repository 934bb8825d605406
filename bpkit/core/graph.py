"""The autograd graph behind a tensor: its nodes, and who wrote each one's backward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from torch import Tensor
from torch.autograd.function import BackwardCFunction

from bpkit.core.function import Function

Kind = Literal["handwritten", "native", "view", "opaque", "leaf"]

# The nodes of torch's views, whose backward is a view as well or, of a part, the part among zeros.
# fmt: off
VIEWS = frozenset(
    f"{name}Backward"
    for name in (
        "Alias", "AsStrided", "BroadcastTo", "Conj", "Diagonal", "Expand", "ExpandAs", "Imag",
        "LiftFresh", "LinalgDiagonal", "NegView", "Permute", "Real", "ReshapeAlias", "ResolveConj",
        "ResolveNeg", "Select", "Slice", "Split", "SplitWithSizes", "Squeeze", "T", "Transpose",
        "Unbind", "Unfold", "UnsafeSplit", "UnsafeSplitWithSizes", "UnsafeView", "Unsqueeze",
        "View", "ViewAs", "ViewAsComplex", "ViewAsReal"
    )
)
# fmt: on


def nodes(outputs: Sequence[Tensor]) -> Iterator[Any]:
    """Every node of the graph behind `outputs`, once."""
    waiting = [output.grad_fn for output in outputs if output.grad_fn is not None]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        yield node
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)


def name(node: Any) -> str:
    """What its operation is called: `Mul` for torch's `MulBackward0`, a Function's own name."""
    return type(node).__name__.rstrip("0123456789").removesuffix("Backward")


def kind(node: Any) -> Kind:
    """Whose backward `node` runs.

    Returns:
        `"handwritten"` for a `bpkit.core.Function`, `"view"` for one of torch's views, `"leaf"` for what
        collects a parameter's gradient, `"native"` for torch's other derivatives, and `"opaque"` for
        what cannot be looked into: somebody else's `autograd.Function`, a compiled graph.
    """
    if isinstance(node, BackwardCFunction):
        made_by: Any = node
        return "handwritten" if issubclass(made_by._forward_cls, Function) else "opaque"
    own = type(node).__name__
    if own == "AccumulateGrad":
        return "leaf"
    if own.rstrip("0123456789") in VIEWS:
        return "view"
    return "native"
