"""Second derivatives against the reference's."""

from __future__ import annotations

import torch
from torch import Tensor

from bpkit.verification.case import Case, Forward, both, call, cotangents, twin
from bpkit.verification.check import Check, Failed
from bpkit.verification.checks.gradgradcheck import REFUSALS, run_twice
from bpkit.verification.compare import difference

# Two derivatives lose a few digits more than one.
SLACK = 100.0


def run(case: Case) -> None:
    """The gradient of a fixed combination of the gradients, to inputs and output gradients."""
    case.need_gradient()
    case.need_float64()
    expected = twin(case, lambda forward: _second(case, forward))
    actual = both(case, lambda forward: _second(case, forward), refusals=REFUSALS)
    largest = max((float(each.abs().max()) for each in expected.values() if each.numel()), default=0.0)
    for name, wanted in expected.items():
        wrong = difference(name, actual[name], wanted, SLACK * case.rtol, scale=1e-6 * largest)
        if wrong:
            raise Failed(wrong)


def _second(case: Case, forward: Forward) -> dict[str, Tensor]:
    """By name; zero where there is none."""
    values = case.fresh()
    outputs = [output for output in call(forward, values) if output.requires_grad]
    grad_outputs = [grad.requires_grad_() for grad in cotangents(outputs)]
    leaves = [values[position] for position in case.differentiable]
    gradients = torch.autograd.grad(outputs, leaves, grad_outputs, create_graph=True, allow_unused=True)
    run_twice(tuple(each for each in gradients if each is not None))
    names = [f"the second derivative by {case.names[position]}" for position in case.differentiable]
    names += [f"the derivative of the gradient by grad_output {i}" for i in range(len(grad_outputs))]
    wanted = [*leaves, *grad_outputs]
    # Each gradient has a weight of its own, which must not depend on which others there are.
    weights = cotangents(leaves, seed=7)
    pairs = [(g, w) for g, w in zip(gradients, weights, strict=True) if g is not None and g.requires_grad]
    found: tuple[Tensor | None, ...] = (None,) * len(wanted)
    if pairs:
        roots, seeds = zip(*pairs, strict=True)
        found = torch.autograd.grad(roots, wanted, seeds, allow_unused=True)
    return {
        name: torch.zeros_like(leaf) if each is None else each
        for name, leaf, each in zip(names, wanted, found, strict=True)
    }


CHECK = Check(
    name="second",
    harm="Gradient penalties, Hessian products and meta-learning get other numbers than the mathematics.",
    remedy="Let backward depend on ctx.saved_tensors through differentiable operations alone, or mark it "
    "once_differentiable so that it says so.",
    run=run,
    subject=Case,
)
