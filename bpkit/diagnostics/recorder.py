"""`Recorder`: the last steps of a run, kept for the moment when something goes wrong.

A flight recorder: a bounded ring of what was seen at each step (loss, batch ids where they were given,
norms where the step was sampled), written out as JSON when a loss spikes.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

logger = logging.getLogger("bpkit")

STEPS = 64


class Recorder:
    """Keeps the last 64 steps.

    Args:
        logdir: where `write` puts its files; None keeps them nowhere.
    """

    def __init__(self, logdir: Path | None) -> None:
        self._logdir = logdir
        self._steps: deque[dict[str, Any]] = deque(maxlen=STEPS)

    def note(self, step: int, **figures: Any) -> None:
        """Something about a step; what is known of it already is kept."""
        for held in reversed(self._steps):
            if held["step"] == step:
                held.update(figures)
                return
            if held["step"] < step:
                break
        self._steps.append({"step": step, **figures})

    def write(self, step: int, reason: Mapping[str, Any]) -> Path | None:
        """All steps as `spike-STEP.json` in the logdir; the path, or None without one."""
        if self._logdir is None:
            return None
        path = self._logdir / f"spike-{step}.json"
        held = {"step": step, **reason, "steps": sorted(self._steps, key=lambda each: each["step"])}
        try:
            path.write_text(json.dumps(_plain(held), indent=1), encoding="utf-8")
        except OSError as error:
            logger.warning("bpkit: the steps before the spike at step %d are not kept: %s", step, error)
            return None
        return path


def _plain(value: Any) -> Any:
    """JSON's own types; a number that is not finite as text."""
    if isinstance(value, float):
        return value if isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value
