"""Which rows and monitors a call of `bpkit bench clinic` means, and its tables as text."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bpkit.bench.clinic.harness import Outcome
from bpkit.bench.clinic.observers import PEERS, missing
from bpkit.bench.clinic.score import Score, by_contender, by_name, score
from bpkit.core.errors import unknown_name

TOTALS = ("monitor", "found", "false alarms", "right layer", "median steps", "invalid runs", "bars")


def chosen(wanted: Sequence[str], known: Sequence[str]) -> list[str]:
    """Rows whose names hold one of those wanted; all by default.

    Raises:
        BpkitError: no row has such a name, with the nearest.
    """
    for name in wanted:
        if not any(name.lower() in each.lower() for each in known):
            raise unknown_name("run", name, known)
    return [each for each in known if not wanted or any(name.lower() in each.lower() for name in wanted)]


def rivals(against: str) -> tuple[list[str], list[str]]:
    """The other monitors that were asked for, and of them those that are not installed.

    Raises:
        BpkitError: an unknown name.
    """
    names = [name.strip() for name in against.split(",") if name.strip()]
    for name in names:
        if name not in PEERS:
            raise unknown_name("monitor", name, PEERS)
    return [name for name in names if not missing(name)], [name for name in names if missing(name)]


def rows(outcomes: Sequence[Outcome]) -> list[tuple[str, ...]]:
    """Of each fault and healthy run its name, the kinds that count, and a cell a monitor."""
    monitors = list(by_contender(outcomes))
    lines = []
    for name, own in by_name(outcomes).items():
        by_monitor = by_contender(own)
        kinds = " ".join(sorted(own[0].kinds)) or "healthy"
        lines.append((name, kinds, *(_cell(by_monitor[each]) for each in monitors)))
    return lines


def totals(outcomes: Sequence[Outcome]) -> list[tuple[str, ...]]:
    """Under `TOTALS`, a line a monitor."""
    return [_total(name, score(own)) for name, own in by_contender(outcomes).items()]


def _cell(outcomes: Sequence[Outcome]) -> str:
    """What one monitor made of a row: over its seeds, and how soon."""
    total = score(outcomes)
    if total.invalid:
        return f"invalid {total.invalid}/{len(outcomes)}"
    if outcomes[0].healthy:
        return f"alarm {total.alarmed}/{total.healthy}" if total.alarmed else "quiet"
    if total.found < total.faults:
        return f"missed {total.faults - total.found}/{total.faults}"
    place = " wrong layer" if total.placed < total.located else ""
    return f"found +{total.delay:.0f}{place}"


def _total(name: str, total: Score) -> tuple[str, ...]:
    def share(part: int, of: int) -> str:
        return f"{part}/{of} {part / of:.1%}" if of else "-"

    return (
        name,
        share(total.found, total.faults),
        share(total.alarmed, total.healthy),
        share(total.placed, total.located),
        "-" if math.isnan(total.delay) else f"{total.delay:.0f}",
        str(total.invalid),
        "ok" if total.within else "over",
    )
