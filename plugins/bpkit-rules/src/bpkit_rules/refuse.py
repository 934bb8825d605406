"""Where torch would put the true gradient back without a word: refused, each in one line.

A rule lives in the backward of a `Function`. What differentiates the forward by itself (forward mode), or
records what the forward ran (tracing, exporting), never sees that backward; what differentiates the backward
(`create_graph`, `torch.func.grad`) would differentiate the rule's own algebra, which is no derivative of the
loss at all.
"""

from __future__ import annotations

from typing import Any

import torch
from bpkit import BpkitError
from torch.autograd import forward_ad


def check_forward(rule: str, *values: Any) -> None:
    """Raise where the forward is about to be differentiated or recorded without the rule.

    Inside `torch.compile` this raises too, and Dynamo then runs the layer as it is, rule and all; with
    `fullgraph=True` the error is the user's to see.
    """
    if torch.compiler.is_compiling():
        raise BpkitError(
            f"rule {rule!r} does not run compiled; leave fullgraph=True out, or revert the model"
        )
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    if tracing or any(isinstance(value, torch.fx.Proxy) for value in values):
        raise BpkitError(f"rule {rule!r}: a trace would have the true gradient; bpkit.revert(model) first")
    for value in values:
        if isinstance(value, torch.Tensor) and forward_ad.unpack_dual(value).tangent is not None:
            raise BpkitError(f"rule {rule!r} has no forward mode: a jvp would be that of the true gradient")


def check_backward(rule: str) -> None:
    """Raise where somebody wants to differentiate the backward."""
    if torch.is_grad_enabled():
        raise BpkitError(
            f"rule {rule!r} has no second derivative: no create_graph=True, torch.func.grad or jacrev over it; "
            "bpkit.revert(model) gives the true gradient back"
        )
