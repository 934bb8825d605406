"""convert and revert in every state of a model: wrapped, compiled, sharded, parametrised, copied."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed import destroy_process_group, init_process_group
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import CheckpointError, checkpoint

import bpkit
import bpkit.nn
from bpkit.core.module import Handwritten
from bpkit.verification.compare import relative_error
from tests.swap.sharded import run_on_two_processes

pytestmark = pytest.mark.filterwarnings("ignore")


class Network(nn.Module):
    """Convolution, normalisation, an in-place ReLU, a tied pair and a shared module."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.first, self.tied = nn.Linear(64, 64), nn.Linear(64, 64)
        self.tied.weight = self.first.weight
        self.head = nn.Linear(64, 3)

    def forward(self, images: Tensor) -> Tensor:
        features = self.relu(self.norm(self.conv(images)))
        features = torch.flatten(nn.functional.max_pool2d(features, 2), 1)
        return self.head(self.relu(self.tied(self.relu(self.first(features)))))


def network() -> nn.Module:
    torch.manual_seed(0)
    return Network().double()


def images() -> Tensor:
    return torch.randn(6, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def outcome(model: nn.Module) -> list[Tensor]:
    """The loss and the gradients."""
    model.zero_grad()
    loss = model(images()).square().mean()
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def same(actual: list[Tensor], expected: list[Tensor]) -> None:
    assert len(actual) == len(expected)
    largest = max(float(each.abs().max()) for each in expected)
    for a, b in zip(actual, expected, strict=True):
        assert relative_error(a, b, scale=1e-6 * largest) < 1e-9


def handwritten(model: nn.Module) -> set[str]:
    return {type(each).__name__ for each in model.modules() if isinstance(each, Handwritten)}


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    destroy_process_group()


def compiled(model: nn.Module) -> Any:
    torch._dynamo.reset()
    return torch.compile(model, backend="aot_eager")


def compiled_and_run(model: nn.Module) -> Any:
    result = compiled(model)
    result(images())
    return result


def weight_normed(model: Any) -> Any:
    for each in (model.conv, model.head):
        parametrizations.weight_norm(each)
    return model


def spectrally_normed(model: Any) -> Any:
    torch.manual_seed(2)
    for each in (model.conv, model.head):
        parametrizations.spectral_norm(each)
    return model


def old_weight_normed(model: Any) -> Any:
    nn.utils.weight_norm(model.head)
    return model


WAYS: dict[str, Callable[[nn.Module], Any]] = {
    "as it is": lambda model: model,
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "compile": compiled,
    "compile, run once": compiled_and_run,
    "weight norm": weight_normed,
    "weight norm by hooks": old_weight_normed,
    "spectral norm": spectrally_normed,
    "DDP": DistributedDataParallel,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("order", ["before", "after"])
def test_converted_before_or_after_it_is_the_same_and_so_is_it_reverted(
    way: str, order: str, group: None
) -> None:
    expected = outcome(WAYS[way](network()))
    if order == "before":
        model = WAYS[way](bpkit.convert(network()))
    else:
        model = WAYS[way](network())
        assert bpkit.convert(model) is model
    assert {"Linear", "BatchNorm2d", "ReLU"} <= {
        name.removeprefix("Parametrized") for name in handwritten(model)
    }
    same(outcome(model), expected)
    assert bpkit.revert(model) is model
    assert not handwritten(model)
    # Running statistics and power iterations moved on: a fresh one that ran once is the measure.
    other = WAYS[way](network())
    outcome(other)
    same(outcome(model), outcome(other))


@pytest.mark.parametrize("order", ["before", "after"])
def test_sharded_by_fsdp2_on_two_processes(order: str, tmp_path: Path) -> None:
    run_on_two_processes(order, tmp_path)


def test_a_checkpoint_recomputed_outside_the_mode_raises() -> None:
    block = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    x = torch.randn(3, 4, requires_grad=True)

    def residual(x: Tensor) -> Tensor:
        return x * block(x) + x

    with bpkit.handwritten():
        output = checkpoint(residual, x, use_reentrant=False)
    with pytest.raises(CheckpointError):
        output.sum().backward()


def test_a_checkpoint_with_the_mode_as_its_context_is_right() -> None:
    block = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    x = torch.randn(3, 4, requires_grad=True)

    def residual(x: Tensor) -> Tensor:
        return x * block(x) + x

    (expected,) = torch.autograd.grad(residual(x).sum(), x)
    output = checkpoint(
        residual, x, use_reentrant=False, context_fn=lambda: (bpkit.handwritten(), bpkit.handwritten())
    )
    (actual,) = torch.autograd.grad(output.sum(), x)
    torch.testing.assert_close(actual, expected)


def test_the_mode_compiles_around_and_inside() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    x = torch.randn(3, 4, requires_grad=True)

    def residual(x: Tensor) -> Tensor:
        return (x * model(x) + x).mean()

    def inside(x: Tensor) -> Tensor:
        with bpkit.handwritten():
            return residual(x)

    (expected,) = torch.autograd.grad(residual(x), x)
    for function in (compiled(inside), inside, compiled(residual)):
        with bpkit.handwritten():
            loss = function(x)
        (actual,) = torch.autograd.grad(loss, x)
        torch.testing.assert_close(actual, expected)


def test_lazy_modules_become_bpkits_before_and_after_their_first_call() -> None:
    x = torch.randn(2, 3, 8, 8)
    for converted_first in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(2))
        if converted_first:
            bpkit.convert(model)
        model(x)
        if not converted_first:
            bpkit.convert(model)
        names = [type(each).__name__ for each in model]
        assert names == ["Conv2d", "BatchNorm2d", "Flatten", "Linear"]
        assert all(isinstance(each, Handwritten) for each in model)
        assert bpkit.converted(model).left == {}
        bpkit.revert(model)
        assert [type(each) for each in model] == [nn.Conv2d, nn.BatchNorm2d, nn.Flatten, nn.Linear]


def test_a_lazy_model_reverted_before_its_first_call_is_torchs() -> None:
    model = bpkit.revert(bpkit.convert(nn.Sequential(nn.LazyLinear(2))))
    assert type(model[0]) is nn.LazyLinear
    model(torch.randn(2, 3))
    assert type(model[0]) is nn.Linear
