"""What a call is given, byte for byte as it was."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from bpkit.verification.case import Case, backward, call, cotangents
from bpkit.verification.check import Check, Failed
from bpkit.verification.compare import same_bytes


@dataclass
class Watched:
    """Tensors as they were when first seen."""

    entries: list[tuple[str, Tensor, Tensor, int]] = field(default_factory=list)

    def add(self, name: str, tensor: Tensor) -> None:
        """Remember the bytes and the version counter of `tensor`."""
        self.entries.append((name, tensor, tensor.detach().clone(), tensor._version))

    def changed(self) -> str | None:
        """The first tensor that is not what it was, and its numbers side by side."""
        for name, tensor, before, version in self.entries:
            if not same_bytes(tensor, before):
                flat = int((tensor.detach() != before).reshape(-1).int().argmax())
                was, now = before.reshape(-1)[flat].item(), tensor.detach().reshape(-1)[flat].item()
                return f"{name} was {was:.6g}, and is {now:.6g}"
            if tensor._version != version:
                return f"{name} was written to (its version went from {version} to {tensor._version})"
        return None


def run(case: Case) -> None:
    """Inputs across the forward; inputs, outputs, saved tensors and gradients across the backward."""
    values = case.fresh()
    watched = Watched()
    for position, value in enumerate(values):
        if isinstance(value, Tensor) and position not in case.buffers:
            watched.add(case.names[position], value)

    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = call(case.forward, values)
    _require(watched, "after the forward, ")
    for index, output in enumerate(outputs):
        watched.add(f"output {index}", output)
    for tensor in saved:
        watched.add("a saved tensor", tensor)
    grad_outputs = cotangents(outputs)
    for index, grad in enumerate(grad_outputs):
        watched.add(f"grad_output {index}", grad)
    backward(outputs, values, grad_outputs)
    _require(watched, "after the backward, ")


def _require(watched: Watched, where: str) -> None:
    changed = watched.changed()
    if changed:
        raise Failed(f"{where}{changed}")


CHECK = Check(
    name="unmutated",
    harm="A tensor that others still use is overwritten: gradients elsewhere in the model go wrong.",
    remedy="Work on fresh tensors: no in-place operation on an input, grad_output or saved tensor.",
    run=run,
    subject=Case,
)
