"""The gradients of a linear layer whose rows come some at a time: see `linear_cross_entropy.py`."""

from __future__ import annotations

import torch
from torch import Tensor

from bpkit.core.precision import widen
from bpkit.core.transforms import may_write


class LinearSums:
    """The gradients of the three factors, added up over blocks of rows."""

    def __init__(self, input: Tensor, weight: Tensor, bias: Tensor | None, wanted: tuple[bool, ...]) -> None:
        self.like, self.weight, self.bias = input, weight, bias
        self.wanted = wanted
        self.inputs: list[Tensor] = []
        self.weights: Tensor | None = None
        self.biases: Tensor | None = None

    def add(self, x: Tensor, slope: Tensor) -> None:
        """A block's rows, and its d."""
        slope = slope.reshape(len(x), len(self.weight))
        rounded = slope.to(x.dtype)
        if self.wanted[0]:
            self.inputs.append(rounded @ self.weight)
        if self.wanted[1]:
            if self.weights is None:
                self.weights = widen(rounded.t() @ x)
            elif may_write() and x.dtype is slope.dtype:
                self.weights.addmm_(rounded.t(), x)
            else:
                self.weights = self.weights + widen(rounded.t() @ x)
        if self.wanted[2]:
            biases = slope.sum(0)
            self.biases = biases if self.biases is None else self.biases + biases

    def gradients(self) -> list[Tensor]:
        """Those that are wanted, in order; sums over rows are wide."""
        inputs = torch.cat(self.inputs) if self.inputs else None
        return [each for each in (inputs, self.weights, self.biases) if each is not None]
