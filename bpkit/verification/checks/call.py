"""The target on the inputs that were given, forward and backward, before anything is asked of it."""

from __future__ import annotations

import traceback
from pathlib import Path

import torch

import bpkit
from bpkit.verification.case import Case, backward, call
from bpkit.verification.check import Check, Failed, one_line

_NOT_THEIRS = tuple(str(Path(package.__file__ or "").parent) for package in (torch, bpkit))


def run(case: Case) -> None:
    """It runs; where it does not, the line of the author's that raised."""
    values = case.fresh()
    try:
        outputs = call(case.forward, values)
    except Exception as error:
        raise Failed(f"the forward raises {one_line(error)}{_where(error)}") from error
    try:
        backward(outputs, values)
    except Exception as error:
        raise Failed(f"the backward raises {one_line(error)}{_where(error)}") from error


def _where(error: Exception) -> str:
    """`, at my_kernels.py:12`: the innermost frame outside of torch and of this package."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((*_NOT_THEIRS, "<"))
    ]
    return f", at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""


CHECK = Check(
    name="call",
    harm="Nothing can be said of what does not run on the inputs that were given.",
    remedy="Mend the line named above, or give other inputs: as many as forward takes, of shapes it accepts.",
    run=run,
    subject=Case,
    decisive=True,
)
