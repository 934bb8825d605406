"""What `verify` returns: a result a check, and their picture as text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any, Literal

from bpkit.core.errors import BpkitError

Status = Literal["pass", "warn", "fail", "skip"]

MARKS: dict[Status, str] = {"pass": "✓", "warn": "!", "fail": "✗", "skip": "–"}
_WORDS: dict[Status, str] = {"pass": "passed", "warn": "warned", "fail": "failed", "skip": "skipped"}


class VerificationError(BpkitError):
    """A target failed a check; the text names each with its numbers and the remedy."""


@dataclass(frozen=True)
class CheckResult:
    """How one check ended.

    Attributes:
        name: of the check.
        status: `"fail"` alone makes a report not ok.
        detail: the numbers of a failure or warning, the reason of a skip, a remark on a pass.
        remedy: of a failure or warning: what it does to a user, and how to mend it.
        points: of a failure: `(x, error)` across the tensor that is wrong, x an input's value or a number.
        seconds: how long it took.
    """

    name: str
    status: Status
    detail: str = ""
    remedy: str = ""
    points: tuple[tuple[float, float], ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True)
class Report:
    """The proof of one target.

    Attributes:
        target: its name.
        results: one a check, in the order they ran.
    """

    target: str
    results: tuple[CheckResult, ...]

    @property
    def ok(self) -> bool:
        """Nothing failed. Warnings and skips are for reading."""
        return not self.failures

    @property
    def seconds(self) -> float:
        """How long it took in all."""
        return sum(result.seconds for result in self.results)

    @property
    def failures(self) -> tuple[CheckResult, ...]:
        """The results that failed."""
        return tuple(result for result in self.results if result.status == "fail")

    def raise_if_failed(self) -> None:
        """Raise `VerificationError` with every failure, if there is one."""
        if not self.ok:
            raise VerificationError("\n".join([f"{self.target} is not proven", *explained(self.failures)]))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"target": self.target, "ok": self.ok, "results": [asdict(each) for each in self.results]}

    def __str__(self) -> str:
        width = max((len(result.name) for result in self.results), default=0)
        good = [each for each in self.results if each.status in ("pass", "skip")]
        lines = [f"  {MARKS[each.status]} {each.name:{width}}  {each.detail}".rstrip() for each in good]
        bad = [each for each in self.results if each.status in ("fail", "warn")]
        return "\n".join([f"{self.target}: {summary([self])}", *lines, *explained(bad)])


def explained(results: Iterable[CheckResult]) -> list[str]:
    """Two lines a result: what was found, and what would mend it; checks that found the same share them."""
    lines = []
    for (status, detail), group in groupby(results, key=lambda each: (each.status, each.detail)):
        alike = list(group)
        lines.append(f"  {MARKS[status]} {', '.join(each.name for each in alike)}: {detail}")
        lines.append(f"    {alike[0].remedy}")
    return lines


def summary(reports: Iterable[Report]) -> str:
    """`31 passed, 1 warned, 2 failed, 3 skipped`, leaving out what there is none of."""
    statuses = [result.status for report in reports for result in report.results]
    parts = [f"{statuses.count(status)} {word}" for status, word in _WORDS.items() if status in statuses]
    return ", ".join(parts) or "nothing to prove"
