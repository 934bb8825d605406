"""Checkpoints: written whole or not at all, read without running anything they contain."""

from __future__ import annotations

import math
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bpkit.core.errors import BpkitError

# `last.pt` is written after a run's first epoch, at its end, and in between, after a step, not more often
# than this: after each epoch of the digits it would take a third of the time.
LAST_SECONDS = 5.0

# Between epochs' ends, as often as `LAST_SECONDS` allows, but not for more than this share of the time.
LAST_SHARE = 0.05

KEYS = frozenset({"bpkit", "made_of", "model", "optimizer", "schedule", "progress", "batches", "random"})


class Checkpoints:
    """`last.pt` and `best.pt` of one run, in its logdir; without a logdir nothing is written."""

    def __init__(self, logdir: Path | None) -> None:
        self.logdir = logdir
        self._last_at = -math.inf
        self._began, self._cost = time.monotonic(), 0.0

    @property
    def due(self) -> bool:
        """Whether `last.pt` is old enough to be written again, or is not there yet."""
        return self._older_than(self._last_at)

    @property
    def overdue(self) -> bool:
        """Whether the run has gone on for so long without one: an epoch may take hours, or never end."""
        return self.logdir is not None and self._older_than(max(self._began, self._last_at))

    def _older_than(self, moment: float) -> bool:
        return time.monotonic() - moment > max(LAST_SECONDS, self._cost / LAST_SHARE)

    def refuse_another_run(self) -> None:
        """Raise a `BpkitError` if the logdir holds a run, which a new one would overwrite."""
        if self.logdir is not None and (self.logdir / "last.pt").exists():
            raise BpkitError(f"logdir {str(self.logdir)!r} already holds a run: resume it, or name another")
        self._began = time.monotonic()

    def resume(self, device: torch.device) -> dict[str, Any]:
        """The contents of `last.pt`; see `load`."""
        if self.logdir is None:
            raise BpkitError("fit(resume=True) needs a logdir that holds a last.pt")
        return load(self.logdir / "last.pt", device)

    def save(self, name: str, state: Callable[[], dict[str, Any]]) -> Path | None:
        """Write what `state()` gives under that name; see `save`."""
        if self.logdir is None:
            return None
        start = time.monotonic()
        save(state(), self.logdir / name)
        if name == "last.pt":
            self._last_at = time.monotonic()
            self._cost = self._last_at - start
        return self.logdir / name


def save(state: dict[str, Any], path: Path) -> None:
    """Write `state` beside `path` and move it there: a full disk or a kill leaves the old file.

    Raises:
        BpkitError: the disk is full or cannot be written to.
    """
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as file:
            try:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
                Path(file.name).replace(path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
    except (OSError, RuntimeError) as error:
        raise BpkitError(
            f"checkpoint {path} was not written: {error}; the one before is untouched"
        ) from error


def load(path: Path, device: torch.device) -> dict[str, Any]:
    """Read a checkpoint, its tensors on `device`, by `torch.load(weights_only=True)`.

    Raises:
        BpkitError: no such file, a directory, or a file that is no checkpoint of bpkit or is cut short.
    """
    if not path.exists():
        raise BpkitError(f"no checkpoint {path}; there is nothing to resume")
    if path.is_dir():
        raise BpkitError(f"checkpoint {path} is a directory, not a file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of a pickle that is none of its own
            state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises a dozen types for as many kinds of damage
        reason = str(error).splitlines()[0].split(". ")[0] if str(error) else type(error).__name__
        raise BpkitError(
            f"checkpoint {path} cannot be read; it is damaged or something else: {reason}"
        ) from error
    if not isinstance(state, dict) or not state.keys() >= KEYS:
        raise BpkitError(f"{path} is no checkpoint of bpkit's Trainer: it lacks {', '.join(sorted(KEYS))}")
    return state
