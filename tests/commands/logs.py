"""Logs of a watched run, and the doctor called on them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bpkit import cli
from bpkit.tensorboard import Writer
from bpkit.tensorboard.record import FINDINGS, LAYERS, Layout, Verdicts

NAMES = ("encoder.0", "encoder.1", "head")
FAULT = {
    "kind": "vanishing",
    "severity": "warning",
    "layers": ["encoder.0", "encoder.1"],
    "step": 2,
    "last_step": 3,
    "evidence": {"slope_per_layer": -0.5},
    "advice": "put ReLU in the place of Sigmoid" + " or say so at length" * 5,
}
CRITICAL = {**FAULT, "kind": "nonfinite", "severity": "critical", "layers": ["head"], "step": 3}


def write(
    place: Path,
    findings: Iterable[dict[str, Any]] = (),
    *,
    names: tuple[str, ...] = NAMES,
    norms: Iterable[Iterable[float]] = ((1e-3, 1e-2, 1.0),) * 3,
    finished: bool = True,
    left_out: Mapping[str, str] | None = None,
) -> Path:
    """A run of a sample a step, by its gradient norms."""
    layout = Layout(names, ("Linear",) * len(names), ("gain", "gradient norm"), "Net")
    with Writer(place) as writer:
        for step, row in enumerate(norms, 1):
            values = np.array([[1.0, norm] for norm in row])
            writer.add_tensor(LAYERS, values, step, content=layout.to_json())
            writer.add_scalar("loss/train", 1 / step, step)
        verdicts = Verdicts(
            step, list(findings), 0.25, 0.012, step, finished=finished, left_out=left_out or {}
        )
        writer.add_record(FINDINGS, verdicts.to_json(), step)
    return place


def doctor(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    code = cli.main(["doctor", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out + err
