"""`torch.library.opcheck`, for operators registered with `torch.library`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bpkit.verification.check import Check, Failed, one_line
from bpkit.verification.subjects import OperatorCase


def run(case: OperatorCase) -> str:
    """Schema, fake implementation, autograd registration and AOT dispatch, by torch's own tests."""
    inputs = tuple(
        each.detach().clone().requires_grad_()
        if isinstance(each, Tensor) and each.is_floating_point()
        else each
        for each in case.inputs
    )
    results: dict[str, Any] = torch.library.opcheck(case.operator, inputs, raise_exception=False)
    for name, result in results.items():
        if isinstance(result, Exception):
            raise Failed(f"{name}: {one_line(result)}")
    return f"{len(results)} tests of torch's"


CHECK = Check(
    name="opcheck",
    harm="torch.compile, export and autograd take this operator for something else than it is.",
    remedy="Declare what it writes in its schema, and register a fake implementation and its autograd.",
    run=run,
    subject=OperatorCase,
)
