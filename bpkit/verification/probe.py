"""What a case is allowed to do, learned from its reference before anything is checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bpkit.verification.case import SEED, Case, Forward, backward, call, seed
from bpkit.verification.compare import same_bytes
from bpkit.verification.precision import rounded


def settled(case: Case) -> Case:
    """`case` with `differentiable` as the reference has it, and with what it writes to copied first.

    A reference that will not differentiate an input (an index, a target) excuses the target; one that
    changes an input (`inplace=True`) allows the target the same; one that draws other random numbers is
    compared in distribution alone.
    """
    case = _in_its_dtype(case)
    try:
        written = _written(case)
    except Exception:  # whatever it is, the checks run into it again and report it
        return case
    copied = replace(
        case,
        forward=_copying(case.forward, written),
        reference=None if case.reference is None else _copying(case.reference, written),
    )
    accepted = tuple(i for i in case.differentiable if _accepts(copied, i))
    if _draws_otherwise(copied):
        copied = replace(copied, reference=None, distribution=copied.reference)
    return replace(copied, differentiable=accepted)


def _draws_otherwise(case: Case) -> bool:
    """Whether both are random, and as far apart under one seed as the reference is from itself under two.

    Torch's generator gives a mask drawn in bfloat16 other numbers than one in float64, so two may agree in
    one of them alone. For a registered layer that is a failure: it promises torch's own draws.
    """
    if case.strict or case.reference is None:
        return False

    def drawn(forward: Forward, dtype: torch.dtype, number: int) -> Sequence[Tensor]:
        seed(number)
        return forward(*case.fresh(required=(), dtype=dtype))

    def otherwise(reference: Forward, dtype: torch.dtype) -> bool:
        try:
            theirs, other = (drawn(reference, dtype, number) for number in (SEED, SEED + 1))
            ours, moved = (drawn(case.forward, dtype, number) for number in (SEED, SEED + 1))
            return _gap(ours, moved) > 0 and 2 * _gap(ours, theirs) > _gap(theirs, other) > 0
        except Exception:  # the checks run into it again
            return False

    return any(otherwise(case.reference, dtype) for dtype in (case.dtype, torch.bfloat16))


def _gap(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    pairs = zip(a, b, strict=True)
    return max((float((x.detach() - y.detach()).abs().max()) for x, y in pairs if x.numel()), default=0.0)


def _in_its_dtype(case: Case) -> Case:
    """`case` in float64, or in the widest dtype that the target takes: many kernels take but one."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        try:
            call(case.forward, case.fresh(required=(), dtype=dtype))
        except Exception:
            continue
        if dtype is torch.float64:
            break
        return replace(rounded(case, dtype), dtype=dtype, rtol=8 * torch.finfo(dtype).eps)
    return case


def _accepts(case: Case, position: int) -> bool:
    """Whether the reference gives a graph when the value at `position` alone requires a gradient."""
    if case.reference is None:
        return True
    try:
        values = case.fresh(required=(position,), dtype=torch.float64)
        outputs = call(case.reference, values)
        backward(outputs, values)
    except Exception:
        return False
    return any(output.requires_grad for output in outputs)


def _written(case: Case) -> frozenset[int]:
    """Positions that a call changes by design: as the reference does, or (`mark_dirty`) by returning them."""
    own = _written_by(case, case.forward, case.dtype, returned=True) if not case.strict else frozenset()
    if case.reference is None:
        return own
    return own | _written_by(case, case.reference, torch.float64, returned=False)


def _written_by(case: Case, forward: Forward, dtype: torch.dtype, *, returned: bool) -> frozenset[int]:
    leaves = case.fresh(dtype=dtype)
    values = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    outputs = call(forward, values)
    return frozenset(
        i
        for i, (leaf, value) in enumerate(zip(leaves, values, strict=True))
        if isinstance(leaf, Tensor)
        and i not in case.buffers
        and not same_bytes(leaf, value)
        and (not returned or any(output is value for output in outputs))
    )


def _copying(forward: Forward, written: frozenset[int]) -> Forward:
    """`forward` on copies of what it writes to: a leaf of a graph cannot be written to."""
    if not written:
        return forward

    def copying(*values: Any) -> Sequence[Tensor]:
        return forward(*(value.clone() if i in written else value for i, value in enumerate(values)))

    return copying  # type: ignore[return-value]
