"""AdamW: Adam with the decay of the weights taken out of the gradient.

    θ ← θ - η λ θ,   then Adam's update with the plain gradient (`adam.py`)

so that the decay is the same for every weight, however large its gradients have been.
Source: Loshchilov & Hutter, "Decoupled weight decay regularization", 2019, algorithm 2.
"""

from __future__ import annotations

import torch

from bpkit.core.spec import OptimizerSpec
from bpkit.optim.adam import Adam


class AdamW(Adam, torch.optim.AdamW):
    """`torch.optim.AdamW`, its update written out."""


SPECS = (
    OptimizerSpec(
        name="adamw",
        optimizer=AdamW,
        reference=torch.optim.AdamW,
        settings=(
            {"lr": 0.01},
            {"lr": 0.01, "weight_decay": 0.2, "betas": (0.8, 0.95)},
            {"lr": 0.01, "amsgrad": True},
        ),
        aliases=("AdamW",),
        summary="Adam with decoupled weight decay",
    ),
)
