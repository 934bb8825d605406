"""Low precision against a float64 truth: what a user of mixed precision may expect."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bpkit.verification.case import Case, Evaluation, Forward, backward, call, cotangents
from bpkit.verification.check import Failed
from bpkit.verification.compare import relative_error

Change = Callable[[Tensor], Tensor]

# How much worse than the reference's own error is allowed, beside one unit in the last place.
FACTOR = 4.0


def rounded(case: Case, dtype: torch.dtype) -> Case:
    """The case on values that `dtype` holds exactly, so that the truth is about the same numbers."""
    return case.having(
        {
            i: value.detach().to(dtype).double()
            for i, value in enumerate(case.values)
            if isinstance(value, Tensor) and value.is_floating_point()
        }
    )


def evaluation(
    case: Case,
    forward: Forward,
    dtype: torch.dtype,
    *,
    autocast: torch.dtype | None = None,
    inside: bool = False,
    change: Change = torch.clone,
) -> Evaluation:
    """A forward and backward in `dtype`, under `autocast` if given, the backward `inside` of it or not.

    `change` is made to the output gradients: of one sign, as large as a scaled loss makes them.
    """
    values = case.fresh(dtype=dtype)
    with torch.autocast(case.device, autocast, enabled=autocast is not None):
        outputs = call(forward, values)
    with torch.autocast(case.device, autocast, enabled=inside):
        gradients = backward(outputs, values, _same_gradients(outputs, change))
    return Evaluation(tuple(output.detach() for output in outputs), gradients)


def require_as_exact(
    case: Case,
    actual: Evaluation,
    twin: Evaluation,
    truth: Evaluation,
    dtype: torch.dtype,
    where: str = "",
    ulps: int = 1,
) -> None:
    """Fail where the error is beyond `FACTOR` times the reference's plus `ulps` of `dtype`.

    A dtype that differs from the reference's is advised against.
    """
    pairs = [
        (f"output {i}", *each)
        for i, each in enumerate(zip(actual.outputs, twin.outputs, truth.outputs, strict=True))
    ]
    for position, exact in truth.gradients.items():
        ours, theirs = actual.gradients.get(position), twin.gradients.get(position)
        if exact is not None and theirs is not None:
            ours = torch.zeros_like(theirs) if ours is None else ours
            pairs.append((f"the gradient of {case.names[position]}", ours, theirs, exact))
    for name, ours, theirs, exact in pairs:
        error, allowed = relative_error(ours, exact), relative_error(theirs, exact)
        if not error <= FACTOR * allowed + ulps * torch.finfo(dtype).eps:
            raise Failed(f"{where}{name} is {error:.1e} from the float64 truth, the reference {allowed:.1e}")
        if ours.dtype != theirs.dtype:
            raise case.advise(f"{where}{name} is {ours.dtype}, and the reference's {theirs.dtype}")


def _same_gradients(outputs: Sequence[Tensor], change: Change) -> list[Tensor]:
    """The same gradients for outputs of any dtype: exact in the lowest."""
    exact = cotangents([output.detach().double() for output in outputs])
    return [
        change(grad.to(torch.bfloat16)).to(output.dtype) for grad, output in zip(exact, outputs, strict=True)
    ]
