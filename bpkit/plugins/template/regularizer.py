"""The example of a regularizer that `bpkit new-plugin` writes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from bpkit import RegularizerSpec, hookimpl
from bpkit.regularizers import Regularizer


@dataclass(frozen=True)
class SmoothL1(Regularizer):
    """A lasso without its kink.

        R(w) = λ Σₖ (√(w[k]² + ε²) - ε)          ∂R/∂w[k] = λ w[k] / √(w[k]² + ε²)          k: any element

    Attributes:
        strength: λ.
        width: ε, below which a weight is treated as by weight decay.

    Source: Charbonnier et al., "Deterministic edge-preserving regularization", 1997.
    """

    strength: float = 1e-4
    width: float = 1e-2

    def value(self, parameter: Tensor) -> Tensor:
        """R, 0-d."""
        return self.strength * (torch.sqrt(parameter * parameter + self.width**2) - self.width).sum()

    def gradient(self, parameter: Tensor) -> Tensor:
        """∂R/∂w, the shape of `parameter`."""
        return self.strength * (parameter / torch.sqrt(parameter * parameter + self.width**2))


@hookimpl
def bpkit_regularizers() -> Iterable[RegularizerSpec]:
    """The regularizers: the gradient of each proven to be the derivative of its value."""
    return [
        RegularizerSpec(
            name="mine.smooth_l1",
            regularizer=SmoothL1,
            settings=({}, {"strength": 0.3, "width": 0.1}),
            summary="a lasso without its kink",
        )
    ]
