"""Learning-rate schedules by name: a factor on the rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from bpkit.core.errors import BpkitError

Decay = Callable[[float], float]

# By name, the factor when a share of the steps after the warm-up has passed.
DECAYS: Mapping[str, Decay] = MappingProxyType(
    {
        "constant": lambda share: 1.0,
        "linear": lambda share: 1.0 - share,
        "cosine": lambda share: 0.5 * (1 + math.cos(math.pi * share)),  # Loshchilov & Hutter, 2017, eq. (5)
        "step": lambda share: 0.1 ** math.floor(3 * share),
    }
)


def schedule(
    name: str, optimizer: Optimizer, total: int | None, *, warmup: int = 0, floor: float = 0.0
) -> LambdaLR:
    """A rate that rises linearly for `warmup` steps and then decays as `name` says.

    Args:
        name: `"constant"`, `"linear"`, `"cosine"` or `"step"` (a tenth at each third).
        optimizer: whose rate it is.
        total: steps of the run.
        warmup: steps of the rise.
        floor: the least factor.

    Raises:
        BpkitError: a warm-up or floor that cannot be; a run of unknown length, which nothing can decay over.
    """
    if total is None and name != "constant":
        raise BpkitError(f"schedule {name!r} needs the number of steps: fit(steps=...)")
    if not isinstance(warmup, int) or warmup < 0:
        raise BpkitError(f"schedule {name!r}: warmup must be a number of steps, not {warmup!r}")
    if not isinstance(floor, (int, float)) or not 0 <= floor <= 1:
        raise BpkitError(f"schedule {name!r}: floor must be a factor from 0 to 1, not {floor!r}")
    decay = DECAYS[name]

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        share = 0.0 if total is None else (step - warmup) / max(1, total - warmup)
        return max(floor, decay(min(1.0, share)))

    return LambdaLR(optimizer, factor)
