"""Adding an activation takes five lines; this adds one, and proves it like any other."""

import pickle

import pytest
import torch
from torch.nn import functional as F

import bpkit
from bpkit.core.graph import kind, name, nodes
from bpkit.layers import activations, rectifiers
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


SPECS = (*activations.SPECS, *rectifiers.SPECS)


def both(spec, **more):
    kwargs = {**next(iter(spec.samples())).kwargs, **more}
    return spec.module(**kwargs), spec.reference(**kwargs)


TAILS = torch.tensor([-1e4, -40.0, -6.0, 6.0, 40.0, 1e4], dtype=torch.float64)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_first_and_second_derivatives_are_finite_and_torchs_in_the_tails(spec):
    gradients = []
    for module in both(spec):
        x = TAILS.clone().requires_grad_()
        (first,) = torch.autograd.grad(module(x).sum(), x, create_graph=True)
        second = torch.zeros_like(x)
        if first.requires_grad and type(module) is not torch.nn.Hardsigmoid:
            (second,) = torch.autograd.grad(first.sum(), x)
        gradients.append((first.detach(), second))
    (first, second), (expected_first, expected_second) = gradients
    torch.testing.assert_close(first, expected_first, rtol=1e-12, atol=1e-15)
    expected_second = expected_second.nan_to_num()  # torch's of Mish is NaN at 1e4
    torch.testing.assert_close(second, expected_second, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("value", [0.0, -0.0, -3.0, 3.0, 6.0, 1.0, -1.0, 0.5, -0.5, 0.1, float("nan")])
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_kinks_and_nan_are_torchs(spec, value):
    gradients = []
    for module in both(spec):
        # As many as fill torch's vectors: in what is left over its ELU lets no NaN through.
        x = torch.full((64,), value, requires_grad=True)
        module(x).sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients, equal_nan=True)


INPLACE = [spec for spec in SPECS if hasattr(both(spec)[1], "inplace")]


@pytest.mark.parametrize("spec", INPLACE, ids=lambda spec: spec.name)
def test_inplace_writes_into_its_input_and_differentiates_it(spec):
    for sample in spec.samples():
        kwargs = {**sample.kwargs, "inplace": True}
        x = torch.linspace(-2, 2, 7, requires_grad=True)
        middle = x * 1
        output = spec.module(**kwargs)(middle)
        assert output is middle
        assert torch.equal(output, spec.reference(**sample.kwargs)(x))
        assert {kind(node) for node in nodes([output])} <= {"handwritten", "native", "leaf"}
        assert [name(node) for node in nodes([output]) if kind(node) == "native"] == ["Mul"]
        (gradient,) = torch.autograd.grad(output.sum(), x)
        (expected,) = torch.autograd.grad(spec.module(**sample.kwargs)(x).sum(), x)
        torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("spec", INPLACE, ids=lambda spec: spec.name)
def test_inplace_is_mapped_and_compiled(spec):
    ours, theirs = both(spec, inplace=True)

    def gradient(module):
        return torch.func.grad(lambda x: module(bpkit.nn.functional.linear(x, WEIGHT)).square().sum())

    for change in (lambda f: f, torch.vmap, lambda f: torch.compile(f, backend="aot_eager")):
        x = torch.linspace(-2, 2, 12).reshape(3, 4)
        torch.testing.assert_close(change(gradient(ours))(x), gradient(theirs)(x))
        torch._dynamo.reset()


WEIGHT = torch.linspace(-1, 1, 8).reshape(2, 4)


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
