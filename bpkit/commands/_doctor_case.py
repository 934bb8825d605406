"""A run as the doctor sees it: its state, its findings, and both in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bpkit.core.bars import bars
from bpkit.core.errors import BpkitError
from bpkit.core.finding import SEVERITIES, Finding, Severity
from bpkit.tensorboard.reader import Array, Run, Series
from bpkit.tensorboard.record import ABSENT

NORM = "gradient norm"
PATIENCE = (
    120.0  # seconds without an event, at least, after which a run that is not finished counts as stopped
)


@dataclass(frozen=True)
class Summary:
    """A run in a line.

    Attributes:
        title: the line.
        worst: severity of its gravest finding, None for a healthy run.
    """

    title: str
    worst: Severity | None


@dataclass(frozen=True)
class Case:
    """One watched run.

    Attributes:
        root: the directory that was asked for.
        run: what its logs say.
        now: when they were read, in seconds since the epoch.

    Raises:
        BpkitError: on `findings`, if they are none of bpkit's.
    """

    root: Path
    run: Run
    now: float

    @property
    def name(self) -> str:
        """The path of the run, as the user would write it."""
        return plain(str(self.root / self.run.name))

    @property
    def state(self) -> Literal["finished", "running", "stopped"]:
        """A run that was not closed is running while it writes as often as it used to."""
        if self.run.finished:
            return "finished"
        return "running" if self.now - self.run.written < max(PATIENCE, 4 * self.run.gap) else "stopped"

    @property
    def findings(self) -> list[Finding]:
        """The last verdict's, the gravest first."""
        held = self.run.verdicts.findings if self.run.verdicts else ()
        try:
            found = [Finding.from_mapping(each) for each in held]
        except ValueError as error:
            raise BpkitError(f"{self.name}: {error}") from error
        return sorted(found, key=lambda each: (-SEVERITIES.index(each.severity), each.step))

    @property
    def faults(self) -> list[Finding]:
        """Those above a note: without any the run is healthy."""
        return [each for each in self.findings if each.severity != "info"]

    @property
    def legible(self) -> list[Finding]:
        """`findings` without control characters."""
        return [_legible(finding) for finding in self.findings]

    @property
    def title(self) -> str:
        """`runs/a: 2 findings, 1 critical, in 400 steps; finished`, or that it is healthy."""
        steps = counted(self.run.step, "step")
        if not self.faults:
            so_far = "" if self.state == "finished" else " so far"
            return f"{self.name}: healthy{so_far}, nothing found in {steps}; {self.ending}"
        grave = sum(finding.severity == "critical" for finding in self.faults)
        if grave == len(self.faults):
            found = counted(grave, "critical finding")
        else:
            found = counted(len(self.faults), "finding") + (f", {grave} critical," if grave else "")
        return f"{self.name}: {found} in {steps}; {self.ending}"

    @property
    def ending(self) -> str:
        """How the run stands."""
        ago = _span(self.now - self.run.written)
        if self.state == "running":
            return f"still running, last written {ago} ago"
        return "finished" if self.state == "finished" else f"stopped without an end {ago} ago (killed?)"

    @property
    def circumstances(self) -> str:
        """Model, samples, and what watching cost."""
        series = self.run.series
        parts = []
        if series:
            layout = series[-1].layout
            parts += [plain(layout.model), counted(len(layout.layers), "module")]
        parts.append(counted(self.run.sampled, "sample"))
        return "; ".join(filter(None, (*parts, self.cost)))

    @property
    def cost(self) -> str:
        """What watching took; empty for a run that does not say."""
        verdicts = self.run.verdicts
        if not verdicts:
            return ""
        seconds, share = float(verdicts.seconds), float(verdicts.share)  # "NaN" may stand there
        return f"watching took {seconds:.2g} s, {share:.1%} of the time"

    @property
    def unlooked(self) -> list[str]:
        """What was not looked at, and why, a line each."""
        left_out = self.run.verdicts.left_out if self.run.verdicts else {}
        return [plain(f"not looked at: {name}: {why}") for name, why in left_out.items()]

    def picture(self) -> str:
        """The last gradient norms by depth; empty if there are none."""
        if not self.run.series:
            return ""
        series = self.run.series[-1]
        norms = series.column(NORM)
        if norms is None:
            return ""
        step, values = norms.last
        named = [
            (plain(name), float(value))
            for name, value in zip(series.layout.layers, values, strict=True)
            if value != np.float32(ABSENT)
        ]
        return bars(named, f"{NORM} by layer at step {step}, input first") if named else ""

    @property
    def summary(self) -> Summary:
        """What is kept of a run while the next are read."""
        return Summary(self.title, self.faults[0].severity if self.faults else None)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: what is not finite is text (`"NaN"`), what was not measured is null."""
        verdicts = self.run.verdicts
        return {
            "run": self.name,
            "state": self.state,
            "healthy": not self.faults,
            "step": self.run.step,
            "samples": self.run.sampled,
            "started": self.run.started,
            "written": self.run.written,
            "seconds": verdicts.seconds if verdicts else None,
            "share": verdicts.share if verdicts else None,
            "left_out": dict(verdicts.left_out) if verdicts else {},
            "findings": [
                {**asdict(each), "evidence": {name: figure(value) for name, value in each.evidence.items()}}
                for each in self.findings
            ],
            "losses": {
                name: {"steps": [step for step, _ in curve], "values": [figure(value) for _, value in curve]}
                for name, curve in self.run.losses.items()
            },
            "layers": [_last(each) for each in self.run.series],
            "histograms": [_last(each) for each in self.run.histograms],
        }


def overall(summaries: Sequence[Summary]) -> str:
    """`3 runs: 1 healthy, 2 with findings, 1 of them critical`."""
    worst = [each.worst for each in summaries]
    bad = len(worst) - worst.count(None)
    critical = worst.count("critical")
    parts = [
        f"{worst.count(None)} healthy" if bad < len(worst) else "",
        f"{bad} with findings" if bad else "",
    ]
    grave = f", {critical} of them critical" if critical else ""
    return f"{counted(len(worst), 'run')}: {', '.join(filter(None, parts))}{grave}"


def counted(number: int, noun: str) -> str:
    """`1 step`, `1,200 steps`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def figure(value: float) -> float | str | None:
    """A number as JSON has it."""
    if value == ABSENT:
        return None
    if value - value != 0:
        return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
    return float(f"{value:.7g}")  # float32 holds no more


def plain(text: str) -> str:
    """Without control characters, which a stranger's layer name may hold, and a terminal would obey."""
    return "".join(each if each.isprintable() else "�" for each in text)


def _legible(finding: Finding) -> Finding:
    return replace(
        finding,
        kind=plain(finding.kind),
        layers=tuple(map(plain, finding.layers)),
        evidence={plain(name): value for name, value in finding.evidence.items()},
        advice=plain(" ".join(finding.advice.split())),
    )


def _last(series: Series) -> dict[str, Any]:
    step, values = series.samples.last
    rows: Array = values
    return {
        **asdict(series.layout),
        "step": step,
        "samples": series.samples.count,
        "values": [[figure(value) for value in row] for row in rows.tolist()],
    }


def _span(seconds: float) -> str:
    """`4 s`, `3 min`, `5 h`, `2 days`."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
