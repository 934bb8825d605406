"""`Ledger`: the findings of a run, one of a kind, put together from all diagnostics that report the kind."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from bpkit.core.finding import SEVERITIES, Finding

# What may be no more than the trace that a graver fault leaves: where no gradient gets through, what
# arrives is noise. It is then a note, and not a second piece of advice.
_TRACES = {
    "noise": frozenset(
        ("vanishing", "exploding", "nonfinite", "dead", "saturated", "zero", "disconnected", "stuck")
    ),
    "update_ratio": frozenset(("vanishing", "dead", "zero", "stuck", "disconnected")),
}


class Ledger:
    """Takes what diagnostics find, sample after sample."""

    def __init__(self) -> None:
        self._by_source: dict[tuple[str, str], Finding] = {}
        self.findings: list[Finding] = []

    def note(self, source: str, finding: Finding) -> Finding | None:
        """Keep a diagnostic's latest finding of a kind, whose first step stays.

        Returns:
            The finding of that kind, from all diagnostics, if it is new or has become graver.
        """
        causes = _TRACES.get(finding.kind, frozenset())
        found = [each.kind for each in self.findings if each.kind in causes and each.severity != "info"]
        if found:
            finding = replace(finding, severity="info", advice=f"what {found[0]} leaves: mend that first")
        key = (source, finding.kind)
        earlier = self._by_source.get(key)
        self._by_source[key] = finding if earlier is None else finding.after(earlier)
        same = [each for (_, kind), each in self._by_source.items() if kind == finding.kind]
        together = _together(same)
        for place, known in enumerate(self.findings):
            if known.kind == finding.kind:
                self.findings[place] = together
                return together if together.worse_than(known) else None
        self.findings.append(together)
        return together


def _together(findings: Iterable[Finding]) -> Finding:
    """One finding of several of a kind: the gravest, with the layers and evidence of all as grave."""
    findings = list(findings)
    gravest = max(findings, key=lambda each: SEVERITIES.index(each.severity))
    equal = [each for each in findings if each.severity == gravest.severity]
    return replace(
        gravest,
        layers=tuple(dict.fromkeys(layer for each in equal for layer in each.layers)),
        step=min(each.step for each in equal),
        last_step=max(each.last_step for each in equal),
        evidence={name: value for each in reversed(equal) for name, value in each.evidence.items()},
    )
