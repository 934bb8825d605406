"""A rule's gradients against the true ones: of the weights, and of the input, which the layer below gets."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from bpkit.core.structure import tensors
from bpkit.verification.case import cotangents
from bpkit.verification.check import Check, Failed, Skipped
from bpkit.verification.modules import constructed
from bpkit.verification.subjects import RuleCase


def run(case: RuleCase) -> str:
    """Each angle, over all weights and over all inputs, is at most the one that the rule declares."""
    truth = _gradients(constructed(case.reference, case.sample), case)
    own = _gradients(constructed(case.module, case.sample), case)
    remarks = []
    for what, allowed in (("weight", case.angle), ("input", case.input_angle)):
        if not truth[what].numel():
            continue
        if own[what].shape != truth[what].shape or not own[what].isfinite().all():
            raise Failed(f"the {what} gradient is not finite, or not of the true one's shape")
        found = _angle(truth[what], own[what])
        if found is None:
            if not own[what].any() and truth[what].any():
                raise Failed(f"the {what} gradient is zero, and the true one is not")
            remarks.append(f"{what}: no angle, the true gradient is zero")
        elif allowed is not None and not found <= allowed:
            raise Failed(f"{found:.2f}° from the true {what} gradient, {allowed:g}° declared")
        else:
            remarks.append(f"{what} {found:.2f}°" + ("" if allowed is None else f" of {allowed:g}°"))
    if not remarks:
        raise Skipped("nothing here has a gradient")
    return ", ".join(remarks)


def _angle(truth: Tensor, own: Tensor) -> float | None:
    """In degrees; None where one of the two is zero."""
    size = float(truth.norm() * own.norm())
    if size == 0:
        return None
    return math.degrees(math.acos(max(-1.0, min(1.0, float(truth @ own) / size))))


def _gradients(module: nn.Module, case: RuleCase) -> dict[str, Tensor]:
    """Of all weights, and of all floating-point inputs, each as one vector."""
    inputs = [
        each.clone().requires_grad_() if isinstance(each, Tensor) and each.is_floating_point() else each
        for each in case.sample.inputs
    ]
    outputs = [output for output in tensors(module(*inputs)) if output.requires_grad]
    wanted: dict[str, list[Tensor]] = {
        "weight": [p for p in module.parameters() if p.requires_grad],
        "input": [each for each in inputs if isinstance(each, Tensor) and each.requires_grad],
    }
    both = [*wanted["weight"], *wanted["input"]]
    found = dict.fromkeys(map(id, both), torch.zeros(0))
    if outputs and both:
        gradients = torch.autograd.grad(outputs, both, cotangents(outputs), allow_unused=True)
        found = {
            id(p): (torch.zeros_like(p) if g is None else g).reshape(-1)
            for p, g in zip(both, gradients, strict=True)
        }
    return {
        what: torch.cat([found[id(p)] for p in leaves] or [torch.zeros(0)]) for what, leaves in wanted.items()
    }


CHECK = Check(
    name="angle",
    harm="The rule strays further from the true gradient than it promises, and may not learn.",
    remedy="Mend the rule's backward, or declare the angle that it really has.",
    run=run,
    subject=RuleCase,
)
