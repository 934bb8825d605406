"""L1, L2 and elastic net.

    L1            R(w) = λ Σₖ |w[k]|                     ∂R/∂w[k] = λ sign(w[k]),  0 at 0
    L2            R(w) = λ/2 Σₖ w[k]²                    ∂R/∂w[k] = λ w[k]
    elastic net   R(w) = λ Σₖ (a |w[k]| + (1 - a)/2 w[k]²)
                  ∂R/∂w[k] = λ (a sign(w[k]) + (1 - a) w[k])                          k: any element

Sources: Tibshirani, "Regression shrinkage and selection via the lasso", 1996 (L1); Krogh & Hertz, "A
simple weight decay can improve generalization", 1992 (L2); Zou & Hastie, 2005 (elastic net).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bpkit.core.errors import BpkitError
from bpkit.core.spec import RegularizerSpec


class Regularizer(ABC):
    """A penalty: a value and its derivative, one parameter at a time."""

    @abstractmethod
    def value(self, parameter: Tensor) -> Tensor:
        """R of one parameter, 0-d; differentiable, so that the gradient can be checked against it."""

    @abstractmethod
    def gradient(self, parameter: Tensor) -> Tensor:
        """∂R/∂w, the shape of `parameter`."""

    @torch.no_grad()
    def add_gradient_(self, parameters: Iterable[Tensor]) -> Tensor:
        """Add ∂R/∂w to the `grad` of every parameter that has one; the sum of R over them, 0-d.

        Nothing is read back from the device.
        """
        reached = [parameter for parameter in parameters if parameter.grad is not None]
        if not reached:
            return torch.zeros(())
        gradients = [each.grad for each in reached if each.grad is not None]
        torch._foreach_add_(gradients, [self.gradient(each) for each in reached])
        return torch.stack([self.value(each).float() for each in reached]).sum()


@dataclass(frozen=True)
class ElasticNet(Regularizer):
    """A mixture of L1 and L2.

    Attributes:
        strength: λ, at least 0.
        l1_ratio: a, the share of L1, in [0, 1].

    Raises:
        BpkitError: a setting outside its range.
    """

    strength: float = 1e-4
    l1_ratio: float = 0.5

    def __post_init__(self) -> None:
        if not self.strength >= 0:
            raise BpkitError(f"{type(self).__name__}: strength must be at least 0, not {self.strength}")
        if not 0 <= self.l1_ratio <= 1:
            raise BpkitError(f"{type(self).__name__}: l1_ratio must lie in [0, 1], not {self.l1_ratio}")

    def value(self, parameter: Tensor) -> Tensor:
        l1, l2 = parameter.abs().sum(), 0.5 * (parameter * parameter).sum()
        return self.strength * (self.l1_ratio * l1 + (1 - self.l1_ratio) * l2)

    def gradient(self, parameter: Tensor) -> Tensor:
        return self.strength * (self.l1_ratio * parameter.sign() + (1 - self.l1_ratio) * parameter)


@dataclass(frozen=True)
class L1(ElasticNet):
    """The lasso's penalty, which drives weights to exactly zero."""

    l1_ratio: float = field(default=1.0, init=False)


@dataclass(frozen=True)
class L2(ElasticNet):
    """Half the squared norm: weight decay, for plain gradient descent."""

    l1_ratio: float = field(default=0.0, init=False)


SPECS = (
    RegularizerSpec(
        name="l1",
        regularizer=L1,
        settings=({}, {"strength": 0.3}),
        aliases=("L1",),
        summary="sum of absolute weights",
    ),
    RegularizerSpec(
        name="l2",
        regularizer=L2,
        settings=({}, {"strength": 0.3}),
        aliases=("L2",),
        summary="half the sum of squared weights",
    ),
    RegularizerSpec(
        name="elastic_net",
        regularizer=ElasticNet,
        settings=({}, {"strength": 0.3, "l1_ratio": 0.2}),
        aliases=("ElasticNet",),
        summary="L1 and L2 together",
    ),
)
