"""Randomness: torch's generator, the same under one seed, and of the reference's distribution."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bpkit.verification.case import SEED, Case, Evaluation, Forward, call, evaluate, seed
from bpkit.verification.check import Check, Failed
from bpkit.verification.compare import same_bytes

DRAWS = 200
# Of 10,000 elements one lies beyond four standard errors by chance; of a billion, two beyond six.
DEVIATIONS = 6.0


def run(case: Case) -> str | None:
    """One seed gives the same bytes twice; a random layer follows torch's generator and its distribution."""
    _require_repeated(case)
    random = is_random(case, case.forward)
    reference = case.reference or case.distribution
    if reference is not None:
        expected = is_random(case, reference)
        if random != expected:
            state = "the same whatever torch's seed" if expected else "another with another seed of torch's"
            raise Failed(f"the output is {state}, unlike the reference's")
        if random:
            _require_distribution(case, reference)
            return f"random; mean and variance of {DRAWS} draws as the reference's"
    return "random" if random else None


def _require_repeated(case: Case) -> None:
    first, second = (evaluate(case.forward, case.fresh()) for _ in range(2))
    for name, a, b in _pairs(case, first, second):
        if not same_bytes(a, b):
            raise Failed(f"{name} differs between two runs under torch.manual_seed({SEED})")


def _pairs(case: Case, first: Evaluation, second: Evaluation) -> list[tuple[str, Tensor, Tensor]]:
    pairs = [
        (f"output {i}", a, b) for i, (a, b) in enumerate(zip(first.outputs, second.outputs, strict=True))
    ]
    for position, a in first.gradients.items():
        b = second.gradients[position]
        if a is not None and b is not None:
            pairs.append((f"the gradient of {case.names[position]}", a, b))
    return pairs


def is_random(case: Case, forward: Forward) -> bool:
    """Whether the output depends on torch's seed."""
    first = call(forward, case.fresh(required=()))
    return any(
        not same_bytes(a, b)
        for shift in range(1, 4)
        for a, b in zip(first, _seeded(case, forward, shift), strict=True)
    )


def _seeded(case: Case, forward: Forward, shift: int) -> tuple[Tensor, ...]:
    seed(SEED + shift)
    return forward(*case.fresh(required=()))


def _require_distribution(case: Case, reference: Forward) -> None:
    actual, expected = (_draws(case, forward) for forward in (case.forward, reference))
    for index, (a, b) in enumerate(zip(actual, expected, strict=True)):
        for name, moment in _MOMENTS.items():
            x, y = moment(a, b), moment(b, b)
            error = ((x.var(0) + y.var(0)) / DRAWS).sqrt()
            gap = (x.mean(0) - y.mean(0)).abs()
            size = y.abs().amax().clamp(min=1e-12)
            wrong = gap > DEVIATIONS * error + 1e-9 * size
            if bool(wrong.any()):
                where = int((gap / (error + 1e-9 * size)).reshape(-1).argmax())
                values = x.mean(0).reshape(-1)[where].item(), y.mean(0).reshape(-1)[where].item()
                raise Failed(
                    f"output {index} has {name} {values[0]:.4g} over {DRAWS} seeds, "
                    f"the reference {values[1]:.4g}"
                )


def _draws(case: Case, forward: Forward) -> list[Tensor]:
    """`[DRAWS, *]` for each output, every draw with a seed of its own."""
    draws = [_seeded(case, forward, shift) for shift in range(DRAWS)]
    return [torch.stack(each).double().flatten(1) for each in zip(*draws, strict=True)]


_MOMENTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": lambda drawn, reference: drawn,
    # Zeros are what dropout is about: all elements together tell 0.68 from 0.70.
    "a share of zeros": lambda drawn, reference: (drawn == 0).double().mean(1, keepdim=True),
    "variance": lambda drawn, reference: (drawn - reference.mean(0)).square(),
    # Draws that belong together, or should not, show in their sum alone.
    "variance of the sum": lambda drawn, reference: (
        ((drawn - reference.mean(0)) * reference.mean(0).sign()).sum(1, keepdim=True).square()
    ),
}


CHECK = Check(
    name="seeded",
    harm="Runs cannot be repeated, or are regularised by another noise than the one that is named.",
    remedy="Draw from torch's default generator in forward alone, and keep what was drawn for backward.",
    run=run,
    subject=Case,
)
