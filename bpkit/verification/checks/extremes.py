"""Values at the edge: NaN, infinities, zeros, exact ties, huge and tiny ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from bpkit.verification.case import Case, call
from bpkit.verification.check import Check, Failed
from bpkit.verification.twins import Expectation, accepted, answer, expectation, require_parity

# A cancellation at 1e6 leaves ten digits of sixteen, at 1e-12 a naive reference, log(1 + x), has but four;
# what this check is after leaves none.
RTOL, TINY, TINY_RTOL = 1e-6, 1e-12, 1e-3


def run(case: Case) -> None:
    """Parity on zeros, ties, huge and tiny values; NaN and infinity where the reference has them."""
    usual = expectation(case)
    for where, varied, rtol in _finite(case):
        expected = accepted(varied)
        if expected is None or not _takes(varied):
            continue
        if expected.finite:
            require_parity(varied, expected, where=where, usual=usual, rtol=rtol)
    for special, at, where, varied in _nonfinite(case):
        expected = accepted(varied)
        if expected is not None and _takes(varied):
            _require_same_holes(varied, expected, special, at, where)


def _finite(case: Case) -> Iterator[tuple[str, Case, float]]:
    """All differentiable values changed at once, and the relative error that is allowed."""
    for name, (change, rtol) in _CHANGES.items():
        values = {i: change(case.values[i].detach()) for i in case.differentiable if case.values[i].numel()}
        if values:
            yield f"with inputs {name}, ", case.having(values), rtol


def _scaled_to(reach: float, value: Tensor) -> Tensor:
    largest = float(value.abs().max())
    return value * (reach / largest) if largest else value


_CHANGES: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "all zero": (torch.zeros_like, RTOL),
    "all tied": (lambda value: value.reshape(-1)[0].expand_as(value).clone(), RTOL),
    "rounded to whole numbers": (torch.round, RTOL),
    **{f"scaled to reach {far:+g}": (partial(_scaled_to, far), RTOL) for far in (30.0, -30.0, 1e3, -1e3)},
    f"scaled to reach {TINY:g}": (partial(_scaled_to, TINY), TINY_RTOL),
}


def _nonfinite(case: Case) -> Iterator[tuple[float, int, str, Case]]:
    """One element of one input made NaN or infinite; parameters are left as they are."""
    for i in case.differentiable:
        if i in case.parameters or not case.values[i].numel():
            continue
        shape = case.values[i].shape
        for special in (math.nan, math.inf, -math.inf):
            flat = case.values[i].detach().reshape(-1).clone()
            flat[len(flat) // 2] = special
            yield special, i, f"with {special} in {case.names[i]}, ", case.having({i: flat.reshape(shape)})


def _takes(case: Case) -> bool:
    """Whether the target takes these values; refusing what nobody gave is a limit."""
    try:
        call(case.forward, case.fresh(required=()))
    except Exception:
        return False
    return True


def _require_same_holes(case: Case, expected: Expectation, special: float, at: int, where: str) -> None:
    """Fail where a NaN is swallowed or an output is made up; the rest is advice.

    At infinity, and for the gradients of other inputs than the one that holds the NaN (`at`), a careful
    formula can be better than its reference, in which zero times a NaN is one.
    """
    actual = answer(case, expected, where)
    for i, (a, b) in enumerate(zip(actual.outputs, expected.evaluation.outputs, strict=True)):
        wrong = _holes(a, b, swallowed=True) or _holes(a, b, swallowed=False)
        if wrong and (math.isnan(special) or not wrong.endswith("nan")):
            raise Failed(f"{where}output {i} is {wrong}")
    for i, theirs in expected.evaluation.gradients.items():
        own = actual.gradients.get(i)
        if own is None or theirs is None:
            continue
        name = f"{where}the gradient of {case.names[i]} is "
        swallowed = _holes(own, theirs, swallowed=True)
        if swallowed and math.isnan(special) and i == at:
            raise Failed(name + swallowed)
        if wrong := swallowed or _holes(own, theirs, swallowed=False):
            raise case.advise(name + wrong)


def _holes(a: Tensor, b: Tensor, *, swallowed: bool) -> str | None:
    """The first element that is finite in `a` alone (swallowed) or in `b` alone, as `this, not that`."""
    mask = a.isfinite() & ~b.isfinite() if swallowed else ~a.isfinite() & b.isfinite()
    if not bool(mask.any()):
        return None
    return f"{a[mask].reshape(-1)[0].item():.6g}, not {b[mask].reshape(-1)[0].item():.6g}"


CHECK = Check(
    name="extremes",
    harm="A saturated unit, a padded row of zeros, a masked minus infinity or a tie gives NaN, or hides one.",
    remedy="Keep exponentials from overflowing on the side that is dropped, divide by nothing that can be "
    "zero, take the reference's subgradient at ties, and let NaN through.",
    run=run,
    subject=Case,
)
