"""Where a run is, and everything needed to go on from there."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from bpkit.core.errors import BpkitError
from bpkit.train import randomness
from bpkit.train.batches import Batches

FORMAT = 1


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


def capture(
    position: Position, model: Any, optimizer: Any, scheduler: Any, scaler: Any, batches: Batches
) -> dict[str, Any]:
    """A checkpoint's contents: tensors, numbers and strings alone, so that they load safely."""
    return {
        "bpkit": FORMAT,
        "made_of": _made_of(optimizer, scheduler),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": {} if scheduler is None else scheduler.state_dict(),
        "scaler": scaler.state_dict(),
        "progress": asdict(position),
        "batches": batches.state(position.batch),
        "random": randomness.capture(),
    }


def restore(
    state: dict[str, Any], model: Any, optimizer: Any, scheduler: Any, scaler: Any, batches: Batches
) -> Position:
    """Bring everything back to where `capture` found it.

    Raises:
        BpkitError: the checkpoint is of another format, model, optimizer or schedule.
    """
    if state["bpkit"] != FORMAT:
        raise BpkitError(f"the checkpoint has format {state['bpkit']}, which this bpkit does not read")
    try:
        for what, name in _made_of(optimizer, scheduler).items():
            if state["made_of"][what] != name:
                raise ValueError(f"its {what} is {state['made_of'][what]}, this run's {name}")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scaler.load_state_dict(state["scaler"])
        if scheduler is not None:
            scheduler.load_state_dict(state["schedule"])
        position = Position(**state["progress"])
        batches.seed = position.seed
        batches.resume(state["batches"])
        randomness.restore(state["random"])
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise BpkitError(f"the checkpoint is of another model, optimizer or schedule: {reason}") from error
    return position


def _made_of(optimizer: Any, scheduler: Any) -> dict[str, str]:
    """Classes by name: what an optimizer of another class makes of its state is no continuation."""
    return {
        "optimizer": type(optimizer).__name__,
        "schedule": "none" if scheduler is None else type(scheduler).__name__,
    }
