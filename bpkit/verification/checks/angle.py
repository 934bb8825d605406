"""A rule's weight gradient against the true one."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from bpkit.verification.case import cotangents
from bpkit.verification.check import Check, Failed
from bpkit.verification.modules import constructed
from bpkit.verification.structure import tensors
from bpkit.verification.subjects import RuleCase


def run(case: RuleCase) -> str:
    """The angle between the two, over all parameters, is at most the one that the rule declares."""
    truth = _gradient(constructed(case.reference, case.sample), case)
    own = _gradient(constructed(case.module, case.sample), case)
    cosine = float(truth @ own / (truth.norm() * own.norm()))
    angle = math.degrees(math.acos(max(-1.0, min(1.0, cosine))))
    if not angle <= case.angle:
        raise Failed(f"{angle:.2f}° from the true weight gradient, {case.angle:g}° declared")
    return f"{angle:.2f}° of {case.angle:g}°"


def _gradient(module: nn.Module, case: RuleCase) -> Tensor:
    outputs = [output for output in tensors(module(*case.sample.inputs)) if output.requires_grad]
    parameters = [p for p in module.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(outputs, parameters, cotangents(outputs), allow_unused=True)
    return torch.cat(
        [
            (torch.zeros_like(p) if g is None else g).reshape(-1)
            for p, g in zip(parameters, gradients, strict=True)
        ]
    )


CHECK = Check(
    name="angle",
    harm="The rule strays further from the true gradient than it promises, and may not learn.",
    remedy="Mend the rule's backward, or declare the angle that it really has.",
    run=run,
    subject=RuleCase,
)
