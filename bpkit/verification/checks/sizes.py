"""Sizes that nobody gave: nothing, one, odd, beyond 16, beyond a block; one axis more or less."""

from __future__ import annotations

from bpkit.verification.case import Case
from bpkit.verification.check import Check, Failed, Skipped, one_line
from bpkit.verification.numeric import function_of, require_directional
from bpkit.verification.twins import accepted, expectation, require_parity
from bpkit.verification.variants import LARGEST, resized

# Longer sums round more; what goes wrong with a size is not the twelfth digit.
RTOL = 1e-9


def run(case: Case) -> str:
    """Parity at every size that the reference accepts; to refuse one is a limit, an empty batch apart.

    Without a reference the backward is held to its own forward, along one direction.
    """
    if case.reference is None and case.distribution is None:
        return _against_differences(case)
    usual = expectation(case)
    tried = 0
    limits = []
    for varied in resized(case):
        expected = accepted(varied.case)
        if expected is None or not expected.finite:
            continue
        try:
            require_parity(varied.case, expected, where=varied.where, usual=usual, rtol=RTOL)
        except Failed:
            raise
        except Exception as error:
            if varied.empty_batch:
                raise Failed(f"{varied.where}{one_line(error)}") from error
            limits.append(f"{varied.where}{one_line(error)}")
            continue
        tried += 1
    if not tried:
        raise Skipped(f"no other size: {limits[0]}" if limits else "the reference accepts no other size")
    if not limits:
        return f"{tried} sizes"
    return f"{tried} sizes; a limit: {limits[0]}" + (f", and {len(limits) - 1} more" if limits[1:] else "")


def _against_differences(case: Case) -> str:
    case.need_gradient()
    case.need_float64()
    tried = 0
    for varied in resized(case):
        try:
            function, inputs = function_of(varied.case)
            outputs = function(*inputs)
        except Exception:  # nobody said that this size makes sense
            continue
        if 0 < sum(output.numel() for output in outputs) <= LARGEST and all(x.numel() for x in inputs):
            try:
                require_directional(function, inputs)
            except Failed as failure:
                raise Failed(f"{varied.where}{failure}") from failure
            except Exception:  # to refuse a size is a limit, in the backward too
                continue
            tried += 1
    if not tried:
        raise Skipped("no reference was given, and the target takes no other size")
    return f"{tried} sizes, by differences: no reference was given"


CHECK = Check(
    name="sizes",
    harm="What was tried at one size is wrong at another: the last batch, a wider layer, a longer text.",
    remedy="Look for a block or a vector that the size does not fill, an axis that is taken for granted, "
    "and a division by a size that can be zero.",
    run=run,
    subject=Case,
)
