"""What the outcomes come to: by kind of fault, in all, and what was missed or said for nothing."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bpkit.bench.clinic.harness import Outcome

DETECTION, FALSE_ALARMS, PLACED = 0.95, 0.02, 0.90  # what each release has to keep


@dataclass(frozen=True)
class Score:
    """Counts over some runs of one contender. Runs that are not what their row says count in `invalid` alone.

    Attributes:
        faults, found: faulty runs, and those whose fault was found.
        healthy, alarmed: healthy runs, and those with any verdict at warning or above.
        located, placed: found faults that have a place, and those at which it was named.
        delay: median steps from the fault to the first verdict that counts; NaN where nothing was found.
        invalid: runs that ended in an error, healthy ones that did not learn, faults that did no harm.
    """

    faults: int
    found: int
    healthy: int
    alarmed: int
    located: int
    placed: int
    delay: float
    invalid: int

    @property
    def detection(self) -> float:
        return self.found / self.faults if self.faults else math.nan

    @property
    def false_alarms(self) -> float:
        return self.alarmed / self.healthy if self.healthy else math.nan

    @property
    def right_layer(self) -> float:
        return self.placed / self.located if self.located else math.nan

    @property
    def within(self) -> bool:
        """Whether it keeps all bars that it has runs for. One whose runs may all be invalid is not kept."""
        bars = (
            (self.detection, self.detection >= DETECTION),
            (self.false_alarms, self.false_alarms <= FALSE_ALARMS),
            (self.right_layer, self.right_layer >= PLACED),
        )
        return all(not self.invalid if math.isnan(figure) else kept for figure, kept in bars)


def score(outcomes: Iterable[Outcome]) -> Score:
    """Count one contender's runs."""
    outcomes = list(outcomes)
    # A monitor that ends a run in an error has missed the fault, or has raised the falsest of alarms.
    valid = [each for each in outcomes if each.valid or each.error]
    faults = [each for each in valid if not each.healthy]
    healthy = [each for each in valid if each.healthy]
    located = [each for each in faults if each.placed is not None]
    delays = [each.delay for each in faults if each.delay is not None]
    return Score(
        faults=len(faults),
        found=sum(bool(each.found) for each in faults),
        healthy=len(healthy),
        alarmed=sum(bool(each.verdicts or each.error) for each in healthy),
        located=len(located),
        placed=sum(bool(each.placed) for each in located),
        delay=statistics.median(delays) if delays else math.nan,
        invalid=sum(not each.valid for each in outcomes),
    )


def by_contender(outcomes: Iterable[Outcome]) -> dict[str, list[Outcome]]:
    """The outcomes of each contender, in the order in which contenders first come."""
    groups: dict[str, list[Outcome]] = {}
    for each in outcomes:
        groups.setdefault(each.contender, []).append(each)
    return groups


def by_name(outcomes: Iterable[Outcome]) -> dict[str, list[Outcome]]:
    """The outcomes of each row, over its seeds."""
    groups: dict[str, list[Outcome]] = {}
    for each in outcomes:
        groups.setdefault(each.name, []).append(each)
    return groups


def complaints(outcomes: Sequence[Outcome]) -> list[str]:
    """One line a run that a contender judged wrongly, or that is not what its row says."""
    lines = []
    for each in outcomes:
        run = f"{each.contender}: {each.name} (seed {each.seed})"
        said = "; ".join(" ".join(verdict.text.split()) for verdict in each.verdicts) or "nothing"
        if each.error:
            lines.append(f"error        {run}: {each.error}")
        elif not each.valid:
            does = "does not learn" if each.healthy else "does no harm"
            lines.append(f"invalid      {run} {does}: score {each.score:.3f}")
        elif each.healthy and each.verdicts:
            lines.append(f"false alarm  {run}: {said}")
        elif not each.healthy and not each.found:
            lines.append(f"missed       {run}, expects {' or '.join(sorted(each.kinds))}; said: {said}")
        elif each.placed is False:
            lines.append(f"wrong layer  {run}: {said}")
    return lines


def disturbed(outcomes: Iterable[Outcome]) -> list[str]:
    """Runs whose score differs between contenders: an observer changed the training that it watched."""
    scores: dict[str, list[float]] = {}
    for each in outcomes:
        if not each.error:
            scores.setdefault(f"{each.name} (seed {each.seed})", []).append(each.score)
    return [run for run, values in scores.items() if len(set(map(repr, values))) > 1]


def as_json(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Scores and runs as plain data; a figure that is not a number is null."""

    def figure(value: float) -> float | None:
        return None if math.isnan(value) else round(value, 6)

    summary = {}
    for name, own in by_contender(outcomes).items():
        total = score(own)
        summary[name] = {
            "faults": total.faults,
            "found": total.found,
            "detection": figure(total.detection),
            "healthy": total.healthy,
            "alarmed": total.alarmed,
            "false_alarms": figure(total.false_alarms),
            "right_layer": figure(total.right_layer),
            "median_steps": figure(total.delay),
            "invalid": total.invalid,
        }
    runs = [
        {
            "name": each.name,
            "seed": each.seed,
            "contender": each.contender,
            "expects": sorted(each.kinds),
            "found": bool(each.found),
            "right_layer": each.placed,
            "steps": each.delay,
            "score": figure(each.score),
            "valid": each.valid,
            "error": each.error,
            "verdicts": [
                {"kind": sorted(said.kind), "layers": list(said.layers), "step": said.step, "text": said.text}
                for said in each.verdicts
            ],
        }
        for each in outcomes
    ]
    return {"summary": summary, "runs": runs}
