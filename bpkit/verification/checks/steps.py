"""An optimizer against its twin, step for step."""

from __future__ import annotations

from torch import Tensor

from bpkit.core.spec import randn
from bpkit.verification.check import Check, Failed, Skipped
from bpkit.verification.compare import difference
from bpkit.verification.subjects import OptimizerCase

STEPS = 100
RTOL = 1e-12


def run(case: OptimizerCase) -> str | None:
    """100 steps in float64 on a small regression, parameters compared after each."""
    if case.reference is None:
        raise Skipped("no torch optimizer to follow")
    own, twin = _start(), _start()
    optimizers = case.optimizer(own, **case.settings), case.reference(twin, **case.settings)
    for step in range(1, STEPS + 1):
        for parameters, optimizer in zip((own, twin), optimizers, strict=True):
            optimizer.zero_grad()
            _loss(parameters, step).backward()
            optimizer.step()
        for index, (a, b) in enumerate(zip(own, twin, strict=True)):
            wrong = difference(f"parameter {index}, after step {step},", a, b, RTOL)
            if wrong:
                raise Failed(wrong)
    return f"{STEPS} steps"


def _start() -> list[Tensor]:
    """A matrix, a vector, and a parameter that the loss uses at every third step alone."""
    return [
        randn(4, 3, seed=1).requires_grad_(),
        randn(4, seed=2).requires_grad_(),
        randn(2).requires_grad_(),
    ]


def _loss(parameters: list[Tensor], step: int) -> Tensor:
    weight, bias, rare = parameters
    input, target = randn(8, 3, seed=10 + step), randn(8, 4, seed=1000 + step)
    loss = ((input @ weight.T + bias).tanh() - target).square().mean()
    return loss + rare.square().sum() if step % 3 == 0 else loss


CHECK = Check(
    name="steps",
    harm="A run does not follow the published update rule, and no longer compares with torch's.",
    remedy="Compare the order of operations with the update rule: decay, moments, bias correction, step.",
    run=run,
    subject=OptimizerCase,
)
