"""Small runs in the format of `bpkit.tensorboard.record`, written as a watch writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bpkit.tensorboard import Writer
from bpkit.tensorboard.record import BINS, FINDINGS, HISTOGRAMS, LAYERS, Layout, Verdicts

COLUMNS = ("gradient norm", "dead")


def layout(layers: Sequence[str], columns: Sequence[str] = COLUMNS) -> Layout:
    return Layout(tuple(layers), ("Linear",) * len(layers), tuple(columns), "Net")


def finding(kind: str, layers: Sequence[str], step: int, last_step: int, severity: str) -> Mapping[str, Any]:
    return {
        "kind": kind,
        "severity": severity,
        "layers": list(layers),
        "step": step,
        "last_step": last_step,
        "evidence": {"slope": -1.5},
        "advice": f"look at {layers[0] if layers else 'the rate'}",
    }


def write(
    writer: Writer,
    layers: Sequence[str],
    values: Mapping[int, Any],
    findings: Sequence[Mapping[str, Any]] | None = None,
    finished: bool = False,
) -> None:
    """Samples [layers × columns] by step, a histogram with the last one, and verdicts unless None."""
    plan = layout(layers)
    for step, sample in values.items():
        writer.add_tensor(LAYERS, sample, step, content=plan.to_json())
    last = max(values)
    counts = np.arange(len(layers) * len(BINS)).reshape(len(layers), -1)
    writer.add_tensor(HISTOGRAMS, counts, last, content=layout(layers, BINS).to_json())
    if findings is not None:
        verdicts = Verdicts(last, findings, 1.0, 0.02, len(values), finished)
        writer.add_record(FINDINGS, verdicts.to_json(), last)
    writer.flush()


def run(logdir: Path, *arguments: Any, **options: Any) -> None:
    """A whole run."""
    with Writer(logdir) as writer:
        write(writer, *arguments, **options)
