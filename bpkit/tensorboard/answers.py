"""What the server tells the page: plain objects, ready for JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from bpkit.core.errors import BpkitError
from bpkit.core.finding import SEVERITIES
from bpkit.tensorboard.cells import cells, scale
from bpkit.tensorboard.history import Array, History
from bpkit.tensorboard.record import ABSENT, BINS
from bpkit.tensorboard.source import Entry, Judgement

Answer = Mapping[str, Any]
MOST = 400  # rows or columns of a picture


def runs(entries: list[Entry]) -> Answer:
    """The list of runs."""
    return {"runs": [asdict(each) for each in entries]}


def heat_map(
    history: History, statistic: str, rows: int, columns: int, match: str = ""
) -> tuple[Answer, Array]:
    """One statistic of the layers whose name has `match` in it: what is said of the cells, and the cells.

    Layers of which the statistic was never measured are `aside`, each with the place of the layer before it
    among `layers`; of a statistic that no layer has, all are blank.
    """
    values = history.column(statistic)
    asked = np.array([match.lower() in name.lower() for name in history.layers], bool)
    measured = asked & (values != np.float32(ABSENT)).any(axis=1)
    (kept,) = np.nonzero(measured if measured.any() else asked)
    shown = cells(statistic, values[kept], min(rows, MOST), min(columns, MOST))
    starts, ends = shown.columns[:-1], shown.columns[1:] - 1
    told = {
        "statistic": statistic,
        "scale": shown.scale,
        "range": shown.range,
        "layers": [history.layers[index] for index in kept],
        "classes": [history.classes[index] for index in kept],
        "aside": {
            history.layers[index]: max(0, int(np.searchsorted(kept, index)) - 1)
            for index in np.setdiff1d(np.nonzero(asked), kept)
        },
        "rows": shown.rows.tolist(),
        "steps": np.stack([history.steps[starts], history.steps[ends]], axis=1).tolist(),
        "samples": len(history.steps),
        "measured": bool(measured.any()),
        "absent": ABSENT,
        "problems": history.problems,
    }
    return told, shown.values


def layer(history: History, name: str, histogram: tuple[int, Array] | None) -> Answer:
    """Every statistic of a layer over the steps, and its histogram.

    Raises:
        BpkitError: the run has no such layer.
    """
    if name not in history.layers:
        raise BpkitError(f"no layer {name!r} in this run")
    place = history.layers.index(name)
    return {
        "layer": name,
        "class": history.classes[place],
        "steps": history.steps.tolist(),
        "curves": [
            {"name": column, "scale": scale(column, values), "values": _numbers(values)}
            for column, values in zip(history.columns, history.row(name), strict=True)
            if (values != np.float32(ABSENT)).any()
        ],
        "histogram": {"step": histogram[0], "bins": list(BINS), "counts": _numbers(histogram[1])}
        if histogram and (histogram[1] != np.float32(ABSENT)).any()
        else None,
    }


def verdicts(judgements: Mapping[str, Judgement]) -> Answer:
    """How many findings of each severity every run has that has been judged."""
    return {
        "verdicts": [
            {"run": run, **{each: severities.count(each) for each in SEVERITIES}}
            for run, held in judgements.items()
            if held.verdicts is not None
            for severities in [[each.severity for each in held.findings]]
        ]
    }


def findings(judgement: Judgement) -> Answer:
    """All verdicts on a run, the gravest first, and what watching it took."""
    told: dict[str, Any] = {"findings": [], "problems": judgement.problems, "watched": False}
    if judgement.verdicts is None:
        return told
    verdicts = judgement.verdicts
    return {
        **told,
        "problems": [
            *judgement.problems,
            *(f"not looked at: {name}: {why}" for name, why in verdicts.left_out.items()),
        ],
        "watched": True,
        "step": verdicts.step,
        "samples": verdicts.samples,
        "share": verdicts.share,
        "finished": verdicts.finished,
        "findings": [
            {
                "kind": each.kind,
                "severity": each.severity,
                "layers": each.layers,
                "where": each.where,
                "step": each.step,
                "last_step": each.last_step,
                "since": each.since,
                "evidence": each.figures,
                "advice": each.advice,
            }
            for each in sorted(judgement.findings, key=lambda each: -SEVERITIES.index(each.severity))
        ],
    }


def _numbers(values: Array) -> list[float | str | None]:
    """Numbers as JSON has them: null where absent, and words for what is not finite."""
    return [
        None if value == np.float32(ABSENT) else float(f"{value:.7g}") if np.isfinite(value) else str(value)
        for value in values
    ]
