"""`Finding`: a verdict. What is wrong, where, since when, on what evidence, and what to try."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Severity = Literal["info", "warning", "critical"]
SEVERITIES: tuple[Severity, ...] = ("info", "warning", "critical")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One fault of a run, as the diagnostic that last saw it has it.

    Attributes:
        kind: `"vanishing"`, `"exploding"`, …; a run has at most one finding of a kind.
        severity: `"info"` for what does no harm, `"warning"`, `"critical"` for what ends the training.
        layers: where, by qualified module name, input side first.
        step: first step at which it was seen, counted from 1.
        last_step: last step at which it was seen.
        evidence: the figures that it rests on.
        advice: what to try, for this model.
    """

    kind: str
    severity: Severity
    layers: tuple[str, ...]
    step: int
    last_step: int
    evidence: Mapping[str, float] = field(default_factory=dict)
    advice: str = ""

    @staticmethod
    def from_mapping(held: Mapping[str, Any]) -> Finding:
        """The finding that was written as a mapping, with figures that are not finite as text (`"NaN"`).

        Raises:
            ValueError: something else.
        """
        try:
            if held["severity"] not in SEVERITIES:
                raise ValueError(f"no severity {held['severity']!r}")
            return Finding(
                kind=str(held["kind"]),
                severity=held["severity"],
                layers=tuple(map(str, held["layers"])),
                step=int(held["step"]),
                last_step=int(held["last_step"]),
                evidence={str(name): float(value) for name, value in held.get("evidence", {}).items()},
                advice=str(held.get("advice", "")),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no finding of bpkit's: {error!r}") from error

    def after(self, earlier: Finding) -> Finding:
        """This finding as the continuation of an earlier one of its kind."""
        return replace(self, step=earlier.step)

    def worse_than(self, earlier: Finding) -> bool:
        """Whether it is graver than an earlier one."""
        return SEVERITIES.index(self.severity) > SEVERITIES.index(earlier.severity)

    @property
    def where(self) -> str:
        """The layers in a few words: all of up to three, else the first, the last and their number."""
        if len(self.layers) <= 3:
            return ", ".join(self.layers) or "the whole model"
        return f"{self.layers[0]} … {self.layers[-1]} ({len(self.layers)} layers)"

    @property
    def since(self) -> str:
        """`since step 3` or `steps 3 to 40`."""
        return (
            f"step {self.step}" if self.step == self.last_step else f"steps {self.step} to {self.last_step}"
        )

    def __str__(self) -> str:
        return (
            f"{self.severity}: {self.kind} in {self.where}, {self.since}\n"
            f"  evidence: {self.figures}\n"
            f"  advice:   {self.advice}"
        )

    def markdown(self) -> str:
        """The same for TensorBoard's Text tab. Layer names stand in code spans, as text."""
        layers = ", ".join(f"`{name.replace('`', '')}`" for name in self.layers) or "the whole model"
        return (
            f"**{self.kind}** ({self.severity})\n\n"
            f"- where: {layers}\n- when: {self.since}\n- evidence: {self.figures}\n- advice: {self.advice}"
        )

    @property
    def figures(self) -> str:
        """The evidence in words and numbers."""
        return ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in self.evidence.items())
