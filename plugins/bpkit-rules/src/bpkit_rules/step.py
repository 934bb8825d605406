"""Step, a neuron that fires or does not, and two stand-ins for its derivative, which is zero.

    y[k] = 1 if x[k] > 0, else 0          ∂L/∂x[k] = 0, in truth                         k: any position

    straight_through     δ[k]                                                            saves nothing
    surrogate            δ[k] / (1 + β |x[k]|)²,  the slope of a fast sigmoid            saves x

There is no angle to a gradient that is zero: how far these are from the truth has no number, and `bpkit verify` says
so. Their direction is that of a smooth unit in place of the step.

Sources: Bengio, Léonard & Courville, "Estimating or propagating gradients through stochastic neurons for conditional
computation", 2013; Neftci, Mostafa & Zenke, "Surrogate gradient learning in spiking neural networks", 2019, whose
fast sigmoid is Zenke & Ganguli's, 2018.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from bpkit import Function, Handwritten, LayerSpec, RuleSpec, Sample
from bpkit.core.spec import randn
from torch import Tensor, nn

from bpkit_rules.refuse import check_backward, check_forward

BETA = 2.0  # for inputs of the size of 1; Zenke & Ganguli's 10 is for membrane potentials


def _step(input: Tensor) -> Tensor:
    return torch.relu(torch.sign(input))


class StepFunction(Function):
    """`[*] -> [*]`, with the true derivative."""

    @staticmethod
    def forward(input: Tensor) -> Tensor:
        return _step(input)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None: ...

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return torch.zeros_like(grad_output)


class StraightThroughFunction(StepFunction):
    """`[*] -> [*]`, whose error passes as it is."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        check_backward("straight_through")
        return grad_output.clone()


class SurrogateFunction(StepFunction):
    """`[*] -> [*]`, whose error passes as through a fast sigmoid."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        check_backward("surrogate")
        (input,) = ctx.saved_tensors
        return grad_output / (1 + BETA * input.abs()).square()


class Heaviside(nn.Module):
    """A step in plain torch: 1 where the input is positive, else 0."""

    def forward(self, input: Tensor) -> Tensor:
        """`[*] -> [*]`."""
        return _step(input)


class Step(Handwritten, Heaviside):
    """A step with its true derivative, zero: nothing below it learns until a rule is chosen."""

    def forward(self, input: Tensor) -> Tensor:
        """`[*] -> [*]`."""
        output: Tensor = StepFunction.call(input)
        return output


class StraightThroughStep(Handwritten, Heaviside):
    """A step under `straight_through`."""

    def forward(self, input: Tensor) -> Tensor:
        """`[*] -> [*]`."""
        check_forward("straight_through", input)
        output: Tensor = StraightThroughFunction.call(input)
        return output


class SurrogateStep(Handwritten, Heaviside):
    """A step under `surrogate`."""

    def forward(self, input: Tensor) -> Tensor:
        """`[*] -> [*]`."""
        check_forward("surrogate", input)
        output: Tensor = SurrogateFunction.call(input)
        return output


def _samples() -> Iterable[Sample]:
    yield Sample(inputs=(randn(4, 6),))


LAYERS = (
    LayerSpec(
        name="Step",
        module=Step,
        reference=Heaviside,
        samples=_samples,
        saves="nothing",
        saved_bytes=lambda module, inputs, output: 0,
        summary="1 where the input is positive, else 0",
    ),
)
RULES = (
    RuleSpec(
        name="straight_through",
        modules={Heaviside: StraightThroughStep},
        angle=0.0,
        summary="a step's error passed on as it is; the true gradient is zero",
    ),
    RuleSpec(
        name="surrogate",
        modules={Heaviside: SurrogateStep},
        angle=0.0,
        summary="a step's error times a smooth unit's slope; the true gradient is zero",
    ),
)
