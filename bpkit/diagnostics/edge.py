"""The edge of stability: how sharp a loss may be for an optimizer's steps to settle.

On the quadratic λ w²/2, gradient descent shrinks w as long as λ < 2/lr. With momentum (Polyak) the bound is
(2 + 2β)/lr, with Nesterov's (2 + 2β)/((1 + 2β) lr) (Cohen et al. 2021). An optimizer that divides the
gradient by P is gradient descent on w' = P^½ w, so that the same bound holds for the largest eigenvalue of
P^-½ H P^-½; Adam's average of gradients, (1 − β₁) g + β₁ m, makes it (2 + 2β₁)/((1 − β₁) lr), 38/lr for
β₁ = 0.9 (Cohen et al. 2022).

Where groups of parameters have thresholds of their own, a group's rows are scaled by (the smallest threshold)
/ (its own): one number is then the edge for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

_Group = Mapping[str, Any]
_Threshold = Callable[[_Group], float]
_Divisor = Callable[[_Group, Mapping[str, Any]], Tensor | None]


@dataclass(frozen=True)
class Edge:
    """Up to where an optimizer is stable.

    Attributes:
        threshold: the largest stable eigenvalue of D^½ H D^½.
        scales: D by parameter: 1 throughout for plain SGD, 1/P for Adam, 0 for one that is not stepped.
        sizes: elements by parameter, those of complex ones counted twice.
    """

    threshold: float
    scales: tuple[Tensor | float, ...]
    sizes: tuple[int, ...]

    @property
    def plain(self) -> bool:
        """Whether the eigenvalues meant are those of H itself."""
        return all(isinstance(scale, float) and scale == 1.0 for scale in self.scales)

    def root(self, like: Tensor) -> Tensor:
        """D^½ as one vector [n], on the device and in the dtype of `like`."""
        parts = []
        for scale, size in zip(self.scales, self.sizes, strict=True):
            part = like.new_empty(size)
            parts.append(part.copy_(scale.reshape(-1)) if isinstance(scale, Tensor) else part.fill_(scale))
        return torch.cat(parts).sqrt()


def edge_of(optimizer: Optimizer, parameters: Sequence[nn.Parameter]) -> Edge | None:
    """The edge of SGD, Adam, AdamW, RMSprop and Adagrad, torch's and bpkit's; None of any other.

    Weight decay, which adds itself to every eigenvalue, is small beside them and left out.
    """
    kind = next((base.__name__ for base in type(optimizer).__mro__ if base.__name__ in _RULES), None)
    if kind is None:
        return None
    threshold_of, divisor_of = _RULES[kind]
    thresholds: dict[int, float] = {}
    divisors: dict[int, Tensor] = {}
    for group in optimizer.param_groups:
        rate = float(group["lr"])
        for parameter in group["params"] if rate > 0 else ():
            if divisor_of is not None:
                divisor = divisor_of(group, optimizer.state.get(parameter, {}))
                if divisor is None:  # it has had no step
                    continue
                divisors[id(parameter)] = divisor
            thresholds[id(parameter)] = threshold_of(group) / rate
    known = [thresholds[id(each)] for each in parameters if id(each) in thresholds]
    if not known:
        return None
    smallest = min(known)
    scales: list[Tensor | float] = []
    for each in parameters:
        scale: Tensor | float = smallest / thresholds[id(each)] if id(each) in thresholds else 0.0
        scales.append(scale / divisors[id(each)] if id(each) in divisors else scale)
    sizes = tuple(each.numel() * (1 + each.is_complex()) for each in parameters)
    return Edge(smallest, tuple(scales), sizes)


def _sgd_threshold(group: Mapping[str, Any]) -> float:
    beta = group["momentum"]
    bound = (2 + 2 * beta) / (1 + 2 * beta if group["nesterov"] else 1)
    return bound / (1 - group["dampening"] if beta else 1)


def _adam_threshold(group: Mapping[str, Any]) -> float:
    beta = float(group["betas"][0])
    return (2 + 2 * beta) / (1 - beta)


def _adam_divisor(group: Mapping[str, Any], state: Mapping[str, Any]) -> Tensor | None:
    square = state.get("max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq")
    if square is None:
        return None
    step, (mean, second) = float(state["step"]), map(float, group["betas"])
    return ((_real(square) / (1 - second**step)).sqrt() + group["eps"]) * (1 - mean**step)


def _rmsprop_divisor(group: Mapping[str, Any], state: Mapping[str, Any]) -> Tensor | None:
    square = state.get("square_avg")
    if square is None:
        return None
    square = _real(square)
    if group["centered"]:
        square = (square - _real(state["grad_avg"]).square()).clamp(min=0)
    return square.sqrt() + group["eps"]


def _adagrad_divisor(group: Mapping[str, Any], state: Mapping[str, Any]) -> Tensor | None:
    if "sum" not in state:
        return None
    slowed = 1 + (float(state["step"]) - 1) * group["lr_decay"]
    return (_real(state["sum"]).sqrt() + group["eps"]) * slowed


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


# By optimizer: its threshold times the rate, and what it divides the gradient by, None for nothing.
_RULES: dict[str, tuple[_Threshold, _Divisor | None]] = {
    "SGD": (_sgd_threshold, None),
    "Adam": (_adam_threshold, _adam_divisor),
    "AdamW": (_adam_threshold, _adam_divisor),
    "RMSprop": (lambda group: 2 + 2 * group["momentum"], _rmsprop_divisor),
    "Adagrad": (lambda group: 2.0, _adagrad_divisor),
}
