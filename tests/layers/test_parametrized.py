"""Weights computed from others: parametrised before and after `convert`, and the rules behind them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import bpkit
import bpkit.nn
from bpkit.core.graph import kind, nodes
from bpkit.core.module import Handwritten
from bpkit.core.purity import audit, run_backward
from bpkit.layers.parametrized import SpectralNormFunction, WeightNormFunction

WAYS = {
    "weight norm": parametrizations.weight_norm,
    "weight norm of all": lambda module: parametrizations.weight_norm(module, dim=None),
    "spectral norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "old weight norm": nn.utils.weight_norm,
    "old spectral norm": nn.utils.spectral_norm,
}
BY_HAND = ("weight norm", "weight norm of all", "spectral norm")
LAYERS = {
    "Linear": (lambda: nn.Linear(3, 4), (5, 3)),
    "Conv1d": (lambda: nn.Conv1d(2, 3, 2), (2, 2, 5)),
    "Conv2d": (lambda: nn.Conv2d(2, 3, 2), (2, 2, 4, 3)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(2, 3, 2), (2, 2, 3, 3)),
}

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
every_way = pytest.mark.parametrize("way", WAYS)
every_layer = pytest.mark.parametrize("layer", LAYERS)


def made(layer: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    make, shape = LAYERS[layer]
    return nn.Sequential(make(), nn.Tanh()).double(), torch.randn(shape, dtype=torch.float64)


def results(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Two training steps' outputs and gradients, for the power method moves its vectors at each."""
    found = {}
    for step in range(2):
        x = x.clone().requires_grad_()
        model.zero_grad()
        output = model(x)
        (output * torch.linspace(-1, 1, output.numel(), dtype=x.dtype).reshape(output.shape)).sum().backward()
        found |= {f"output {step}": output.detach(), f"x {step}": x.grad}
        found |= {f"{name} {step}": p.grad.clone() for name, p in model.named_parameters()}
    return found


@every_way
@every_layer
@pytest.mark.parametrize("first", ["parametrised", "converted"])
def test_outputs_and_gradients_are_torchs(way: str, layer: str, first: str) -> None:
    model, x = made(layer)
    twin = copy.deepcopy(model)
    torch.manual_seed(1)
    WAYS[way](twin[0])
    if first == "converted":
        bpkit.convert(model)
    torch.manual_seed(1)
    WAYS[way](model[0])
    bpkit.convert(model)
    assert isinstance(model[0], getattr(bpkit.nn, layer))
    assert list(model.state_dict()) == list(twin.state_dict())
    torch.testing.assert_close(results(model, x), results(twin, x), rtol=1e-11, atol=1e-13)
    bpkit.revert(model)
    assert not any(isinstance(module, Handwritten) for module in model.modules())
    torch.testing.assert_close(results(model, x), results(twin, x), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("way", BY_HAND)
@every_layer
def test_the_parametrisation_itself_is_handwritten(way: str, layer: str) -> None:
    model, x = made(layer)
    WAYS[way](model[0])
    report = bpkit.converted(bpkit.convert(model))
    assert report.left == {}
    assert set(report.converted) == {"0", "0.parametrizations.weight.0", "1"}
    output = model(x)
    assert {kind(node) for node in nodes([output])} <= {"handwritten", "view", "leaf"}
    with audit() as found:
        run_backward([output], list(model.parameters()), [torch.ones_like(output)])
    assert not found.breaches
    parametrize.remove_parametrizations(model[0], "weight")
    assert type(model[0]) is getattr(bpkit.nn, layer)


def test_what_has_no_twin_is_left_with_the_reason() -> None:
    model = bpkit.convert(nn.Sequential(parametrizations.orthogonal(nn.Linear(3, 3))))
    left = bpkit.converted(model).left
    assert list(left) == ["0.parametrizations.weight.0"]
    assert "no hand-written twin" in left["0.parametrizations.weight.0"]


@pytest.mark.parametrize("dim", [0, 1, 2, -1])
def test_weight_norm_is_its_derivative(dim: int) -> None:
    torch.manual_seed(0)
    v = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    g = torch.norm_except_dim(v.detach(), 2, dim).clone().requires_grad_()
    both = (lambda v, g: WeightNormFunction.call(v, g, dim)), (v, g)
    assert torch.autograd.gradcheck(*both)
    assert torch.autograd.gradgradcheck(*both)


@pytest.mark.parametrize("dim", [0, 1])
def test_spectral_norm_is_its_derivative(dim: int) -> None:
    torch.manual_seed(0)
    weight = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    left = torch.randn(weight.shape[dim], dtype=torch.float64)
    right = torch.randn(weight.numel() // len(left), dtype=torch.float64)
    both = (lambda weight: SpectralNormFunction.call(weight, left, right, dim)), (weight,)
    assert torch.autograd.gradcheck(*both)
    assert torch.autograd.gradgradcheck(*both)


def test_a_weight_norm_in_half_precision_is_squared_in_single() -> None:
    """A norm of 256 is enough for its square to be beyond float16."""
    torch.manual_seed(0)
    layer = parametrizations.weight_norm(nn.Linear(4096, 2, bias=False))
    with torch.no_grad():
        layer.parametrizations.weight.original1.mul_(800)
    layer.half()
    found = []
    for module in (bpkit.convert(copy.deepcopy(layer)), layer):
        output = module(torch.ones(1, 4096, dtype=torch.float16) / 4096)
        found.append(torch.autograd.grad(output.sum(), list(module.parameters())))
    for ours, theirs in zip(*found, strict=True):
        assert theirs.any()
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-5)
