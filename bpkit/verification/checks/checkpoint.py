"""Inside `torch.utils.checkpoint`, which runs the forward again for the backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from bpkit.verification.case import Case, Forward, both, evaluate
from bpkit.verification.check import Check, Failed, Skipped, Warned, one_line
from bpkit.verification.compare import require_equal


def run(case: Case) -> None:
    """Equal to the plain call."""
    case.need_gradient()
    plain = evaluate(case.forward, case.fresh())

    def measure(forward: Forward) -> Any:
        def on_copies(*values: Any) -> Sequence[Tensor]:
            """A module's buffers are no arguments of it: torch saves those, and refuses one that is moved."""
            return forward(*(v.clone() if i in case.buffers else v for i, v in enumerate(values)))

        def checkpointed(*values: Any) -> Sequence[Tensor]:
            outputs: tuple[Tensor, ...] = checkpoint(on_copies, *values, use_reentrant=False)
            return outputs

        return evaluate(checkpointed, case.fresh())  # type: ignore[arg-type]

    try:
        actual = both(case, measure)
    except (Failed, Warned, Skipped):
        raise
    except Exception as error:
        raise case.advise(one_line(error)) from error
    require_equal(case, actual, plain, case.rtol, where="when checkpointed, ")


CHECK = Check(
    name="checkpoint",
    harm="Activation checkpointing, which long sequences and large models rely on, breaks on this.",
    remedy="Unpack ctx.saved_tensors once in a backward, and keep tensors nowhere else.",
    run=run,
    subject=Case,
)
