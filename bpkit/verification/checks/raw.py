"""What the backward itself returns, before the engine mends it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from bpkit.verification.case import Case, call, cotangents
from bpkit.verification.check import Check, Failed, Skipped
from bpkit.verification.graph import Entry, python_backwards


def run(case: Case) -> str | None:
    """Call every hand-written backward in the graph directly: shape, dtype and device of each gradient."""
    case.need_gradient()
    for dtype in dict.fromkeys((case.dtype, torch.float32, torch.bfloat16)):
        try:
            outputs = call(case.forward, case.fresh(dtype=dtype))
        except Exception:
            if dtype is case.dtype or (case.strict and dtype is torch.float32):
                raise
            continue  # a kernel for one dtype alone
        entries = python_backwards(outputs, cotangents(outputs))
        if not entries:
            raise Skipped("no autograd.Function in the graph")
        for entry in entries:
            for problem in _problems(entry):
                raise Failed(f"{entry.name}, in {str(dtype).removeprefix('torch.')}: {problem}")
    return None


def _problems(entry: Entry) -> Iterator[str]:
    needed = entry.node.needs_input_grad
    with torch.no_grad():
        returned: Any = entry.node.apply(*entry.grad_outputs)
    gradients = returned if isinstance(returned, tuple) else (returned,)
    if len(gradients) < len(needed):
        yield f"backward returns {len(gradients)} gradients for {len(needed)} inputs of forward"
    edges = [edge for edge in entry.node.next_functions if edge[0] is not None]
    wanted = [i for i, need in enumerate(needed) if need]
    for i, (source, output) in zip(wanted, edges, strict=False):
        gradient = gradients[i] if i < len(gradients) else None
        if gradient is None:
            continue
        if not isinstance(gradient, Tensor):
            yield f"the gradient of input {i} is {type(gradient).__name__}, not a tensor"
            continue
        variable = getattr(source, "variable", None)
        like = source._input_metadata[output] if variable is None else variable
        if tuple(gradient.shape) != tuple(like.shape):
            yield f"the gradient of input {i} has shape {list(gradient.shape)}, not {list(like.shape)}"
        if gradient.dtype != like.dtype:
            yield f"the gradient of input {i} is {gradient.dtype}, not {like.dtype}"
        if gradient.device != like.device:
            yield f"the gradient of input {i} is on {gradient.device}, not {like.device}"


CHECK = Check(
    name="raw",
    harm="The engine quietly sums or casts such a gradient, so it breaks where the engine does not look: "
    "under torch.compile, in a double backward, on another device.",
    remedy="Return one gradient an input, in that input's shape (sum over broadcast axes), dtype and device.",
    run=run,
    subject=Case,
)
