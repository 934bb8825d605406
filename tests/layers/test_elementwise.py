"""Adding an activation takes five lines; this adds one, and proves it like any other."""

import pickle

import pytest
import torch
from torch.nn import functional as F

import bpkit
from bpkit.layers import activations
from bpkit.layers.elementwise import elementwise

Squareplus = elementwise(
    "Squareplus",
    forward=lambda x: (x + torch.sqrt(x * x + 4)) / 2,
    backward=lambda grad_output, x: grad_output * (1 + x / torch.sqrt(x * x + 4)) / 2,
)
Mistaken = elementwise(
    "Mistaken",
    forward=lambda x: (x + torch.sqrt(x * x + 4)) / 2,
    backward=lambda grad_output, x: grad_output * (1.001 + x / torch.sqrt(x * x + 4)) / 2,
)


def test_a_new_activation_is_proven():
    report = bpkit.verify(Squareplus.SPEC, exclude=["compile"])
    assert report.ok, str(report)
    assert type(pickle.loads(pickle.dumps(Squareplus()))) is Squareplus


def test_a_mistaken_one_is_not():
    failed = {result.name for result in bpkit.verify(Mistaken.SPEC, only=["gradcheck"]).failures}
    assert failed == {"gradcheck"}


TAILS = torch.tensor([-1e4, -40.0, -6.0, 6.0, 40.0, 1e4], dtype=torch.float64)


@pytest.mark.parametrize("spec", activations.SPECS, ids=lambda spec: spec.name)
def test_first_and_second_derivatives_are_finite_and_torchs_in_the_tails(spec):
    gradients = []
    for module in (spec.module(), spec.reference()):
        x = TAILS.clone().requires_grad_()
        (first,) = torch.autograd.grad(module(x).sum(), x, create_graph=True)
        second = torch.autograd.grad(first.sum(), x)[0] if first.requires_grad else torch.zeros_like(x)
        gradients.append((first.detach(), second))
    (first, second), (expected_first, expected_second) = gradients
    torch.testing.assert_close(first, expected_first, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(second, expected_second, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("value", [0.0, float("nan")])
@pytest.mark.parametrize("spec", activations.SPECS, ids=lambda spec: spec.name)
def test_kinks_and_nan_are_torchs(spec, value):
    gradients = []
    for module in (spec.module(), spec.reference()):
        # As many as fill torch's vectors: in what is left over its ELU lets no NaN through.
        x = torch.full((64,), value, requires_grad=True)
        module(x).sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients, equal_nan=True)


INPLACE = [spec for spec in activations.SPECS if hasattr(spec.reference(), "inplace")]


@pytest.mark.parametrize("spec", INPLACE, ids=lambda spec: spec.name)
def test_inplace_writes_into_its_input_and_differentiates_it(spec):
    results = []
    for module in (spec.module(inplace=True), spec.reference(inplace=True)):
        x = torch.linspace(-2, 2, 7, requires_grad=True)
        middle = x * 1
        output = module(middle)
        assert output.data_ptr() == middle.data_ptr()
        output.sum().backward()
        results.append((output.detach(), x.grad))
    torch.testing.assert_close(*results)


def test_functionals_take_torchs_arguments():
    x = torch.linspace(-2, 2, 5)
    assert torch.equal(bpkit.functional.leaky_relu(x, 0.3), F.leaky_relu(x, 0.3))
    assert torch.equal(bpkit.functional.elu(x, alpha=2.0), F.elu(x, alpha=2.0))
    assert torch.equal(bpkit.functional.gelu(x, approximate="tanh"), F.gelu(x, approximate="tanh"))
    assert torch.equal(bpkit.functional.softplus(x, 2.0, 3.0), F.softplus(x, 2.0, 3.0))
    for call in (
        lambda: bpkit.functional.gelu(x, "tanh"),
        lambda: bpkit.functional.relu(x, slope=1),
        lambda: bpkit.functional.elu(x, 1.0, alpha=1.0),
    ):
        with pytest.raises(TypeError):
            call()
