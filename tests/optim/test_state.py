"""State dicts are torch's own: the same keys, and a run that moves to the twin and back goes on."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from bpkit.core.spec import OptimizerSpec
from bpkit.plugins.registry import registry

CASES = [
    pytest.param(spec, settings, id=f"{spec.name}-{settings}")
    for spec in registry().optimizers
    if spec.reference is not None
    for settings in spec.settings
]


def run(optimizer: torch.optim.Optimizer, steps: range) -> list[Tensor]:
    parameters = optimizer.param_groups[0]["params"]
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for each in parameters[:-1]:  # the last never has a gradient
            each.grad = torch.randn(each.shape, dtype=each.dtype, generator=generator)
        optimizer.step()
    return [each.detach() for each in parameters]


def parameters() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((4, 3), (3,), (), (2,))
    return [torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_() for shape in shapes]


@pytest.mark.cpu
@pytest.mark.parametrize(("spec", "settings"), CASES)
def test_the_state_has_torchs_keys(spec: OptimizerSpec, settings: dict[str, object]) -> None:
    assert spec.reference is not None
    states = []
    for kind in (spec.optimizer, spec.reference):
        optimizer = kind(parameters(), **settings)
        run(optimizer, range(3))
        states.append({key: set(state) for key, state in optimizer.state_dict()["state"].items()})
    assert states[0] == states[1]


@pytest.mark.cpu
@pytest.mark.parametrize("ours_first", [True, False], ids=["to torch", "from torch"])
@pytest.mark.parametrize(("spec", "settings"), CASES)
def test_a_run_moves_to_the_twin(spec: OptimizerSpec, settings: dict[str, object], ours_first: bool) -> None:
    assert spec.reference is not None
    kinds = (spec.optimizer, spec.reference) if ours_first else (spec.reference, spec.optimizer)
    first = kinds[0](parameters(), **settings)
    moved = [each.clone().requires_grad_() for each in run(first, range(5))]
    second = kinds[1](moved, **settings)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    torch.testing.assert_close(run(second, range(5, 12)), run(first, range(5, 12)), rtol=1e-12, atol=1e-14)
