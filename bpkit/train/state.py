"""Where a run is, and everything needed to go on from there."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from bpkit.core.errors import BpkitError


@dataclass
class Position:
    """Where a run is.

    Attributes:
        step: optimizer steps taken.
        epoch: whole epochs done.
        batch: batches done of the epoch in progress.
        seed: of the order of the batches.
        best: best value of the monitored metric so far.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    seed: int = 0
    best: float | None = None


def capture(position: Position, model: Any, optimizer: Any, scheduler: Any, scaler: Any) -> dict[str, Any]:
    """A checkpoint's contents: tensors, numbers and strings alone, so that they load safely."""
    return {
        "bpkit": 1,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": {"last_epoch": scheduler.last_epoch} if hasattr(scheduler, "last_epoch") else {},
        "scaler": scaler.state_dict(),
        "progress": asdict(position),
        "random": {
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        },
    }


def restore(state: dict[str, Any], model: Any, optimizer: Any, scheduler: Any, scaler: Any) -> Position:
    """Bring everything back to where `capture` found it.

    Raises:
        BpkitError: the checkpoint is of another model or optimizer.
    """
    try:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scaler.load_state_dict(state["scaler"])
        position = Position(**state["progress"])
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise BpkitError(f"the checkpoint is of another model or optimizer: {reason}") from error
    if state["schedule"]:
        scheduler.last_epoch = state["schedule"]["last_epoch"]
    torch.set_rng_state(state["random"]["cpu"].cpu())
    if torch.cuda.is_available() and state["random"]["cuda"]:
        torch.cuda.set_rng_state_all([each.cpu() for each in state["random"]["cuda"]])
    return position
