"""What a watch has to say at its end, as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bpkit.core.finding import Finding


def summary(step: int, findings: Sequence[Finding], left_out: Mapping[str, str], *, looking: bool) -> str:
    """The findings, with where, when, evidence and advice; a line for a healthy run and for each note.

    Args:
        step: steps that were seen.
        findings: verdicts on them.
        left_out: diagnostics that did not look, and why.
        looking: whether any did.
    """
    if not step and not findings:
        return "nothing seen yet: the optimizer has taken no step"
    grave = [each for each in findings if each.severity != "info"]
    left = [f"not looked at: {name}: {why}" for name, why in left_out.items()]
    if not grave and not looking:
        return "\n".join([f"nothing looked at in {step} steps", *left])
    head = [] if grave else [f"healthy: nothing found in {step} steps"]
    notes = [
        f"info: {each.kind} in {each.where}, {each.since}: {each.advice}"
        for each in findings
        if each.severity == "info"
    ]
    return "\n".join([*head, *map(str, grave), *notes, *left])
