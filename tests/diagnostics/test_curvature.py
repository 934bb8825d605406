"""Curvature against the dense Hessian, against known spectra, and against the training without it."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import bpkit
from bpkit.core.errors import BpkitError
from bpkit.diagnostics.curvature import Curvature
from bpkit.diagnostics.hessian import Hessian
from bpkit.diagnostics.spectrum import Density, Trace, lanczos, normal, signs
from tests.diagnostics.curved import MODELS, dense, generator, made, measured, quadratic, randn

Loss = Callable[[nn.Module], Tensor]


@pytest.mark.parametrize("converted", [False, True], ids=["torch", "bpkit"])
@pytest.mark.parametrize("name", MODELS)
def test_the_spectrum_is_that_of_the_dense_hessian(name: str, converted: bool) -> None:
    model, closure = made(name, converted)
    reference, truth = made(name)
    hessian = dense(reference, truth)
    exact = torch.linalg.eigvalsh(hessian)
    assert exact[0] < -1e-3 < 1e-3 < exact[-1]  # indefinite: both ends are tested
    found = measured(Curvature(closure, steps=len(exact)), model)
    size = exact.abs().max().item()
    assert found.parameters == len(exact)
    assert found.eigenvalues == pytest.approx(exact.flip(0)[:5].tolist(), abs=1e-8 * size)
    assert found.lowest == pytest.approx(exact[0].item(), abs=1e-8 * size)
    assert max(found.errors) < 1e-8 * size
    assert abs(found.trace.value - hessian.trace().item()) < 4 * found.trace.error
    assert found.loss == pytest.approx(truth().item(), rel=1e-12)


def test_products_are_those_of_the_dense_hessian_where_some_parameters_are_frozen() -> None:
    model, closure = made("mlp")
    model[0].bias.requires_grad_(False)
    hessian = dense(model, closure)
    chosen = [each for each in model.parameters() if each.requires_grad]
    vector = randn(len(hessian))
    with Hessian(closure, model, chosen) as products:
        assert torch.allclose(products.product(vector), hessian @ vector, rtol=1e-10, atol=1e-12)


def test_a_quadratic_has_the_eigenvalues_that_it_was_given_each_as_often() -> None:
    given = torch.tensor([7.0, 7.0, 7.0, 2.0, 2.0, 0.0, 0.0, -3.0, -3.0, 1.5], dtype=torch.float64)
    model, closure, _ = quadratic(given)
    found = measured(Curvature(closure, eigenvalues=10, probes=3), model)
    assert found.eigenvalues == pytest.approx(given.sort(descending=True).values.tolist(), abs=1e-10)
    assert found.lowest == pytest.approx(-3.0, abs=1e-10)


@pytest.mark.parametrize("name", ["mlp", "normalised"])
def test_checkpointed_and_compiled_models_have_the_same_spectrum(name: str) -> None:
    model, closure = made(name)
    expected = measured(Curvature(closure, steps=8), model).eigenvalues
    x, target = randn(9, 4), torch.arange(9) % 3
    kept = Curvature(lambda: F.cross_entropy(3 * checkpoint(model, x, use_reentrant=False), target), steps=8)
    assert measured(kept, model).eigenvalues == pytest.approx(expected, rel=1e-9)
    compiled = torch.compile(model, backend="aot_eager")
    assert compiled(x).requires_grad
    swift = Curvature(lambda: F.cross_entropy(3 * compiled(x), target), steps=8)
    assert measured(swift, compiled).eigenvalues == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", ["recurrent", "attention"])
def test_layers_whose_kernels_have_no_second_derivative_are_measured_in_float32(name: str) -> None:
    found = []
    x, target = randn(9, 4).float(), torch.arange(9) % 3
    for converted in (False, True):
        model, _ = made(name, converted)
        model.float()
        curvature = Curvature(lambda model=model: F.cross_entropy(3 * model(x), target), steps=30, probes=1)
        found.append(measured(curvature, model).eigenvalues[0])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_a_reentrant_checkpoint_is_refused_for_it_hides_its_parameters(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, _ = made("mlp")
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    x = randn(9, 4).requires_grad_()
    curvature = Curvature(lambda: checkpoint(model, x, use_reentrant=True).square().sum())
    with bpkit.watch(model, optimizer, diagnostics=[curvature]):
        optimizer.step()
    assert curvature.spectrum is None
    assert "use_reentrant=False" in caplog.text


def test_a_linear_loss_has_no_curvature() -> None:
    model = nn.Linear(3, 1).double()
    x = randn(4, 3)
    found = measured(Curvature(lambda: model(x).sum()), model)
    assert (found.eigenvalues[0], found.lowest, found.trace.value) == (0.0, 0.0, 0.0)


def test_few_steps_find_the_ends_of_a_wide_spectrum_and_bound_their_error() -> None:
    given = torch.cat(
        [torch.linspace(-1, 1, 197, dtype=torch.float64), torch.tensor([20.0, 9.0, -6.0]).double()]
    )
    model, closure, _ = quadratic(given)
    found = measured(Curvature(closure, eigenvalues=3, steps=20), model)
    assert found.eigenvalues[:2] == pytest.approx([20.0, 9.0], abs=1e-8)
    assert found.lowest == pytest.approx(-6.0, abs=1e-6)
    for value, error in zip(found.eigenvalues, found.errors, strict=True):
        assert (given - value).abs().min().item() <= error + 1e-10
    assert found.errors[2] > 1e-4  # the bulk's edge is not resolved, and that is said


def test_density_integrates_to_one_and_has_the_moments_of_the_spectrum() -> None:
    given = torch.cat(
        [torch.linspace(-1, 2, 290, dtype=torch.float64), torch.linspace(8, 9, 10, dtype=torch.float64)]
    )
    matrix = quadratic(given)[2]
    source = generator()

    def draw() -> Tensor:
        return normal(given, source)

    probes = [signs(given, source) for _ in range(20)]
    density = Density.of([lanczos(lambda v: matrix @ v, probe, 25, draw) for probe in probes])
    assert density.weights.sum().item() == pytest.approx(1, abs=1e-12)
    points = torch.linspace(-5, 14, 4001, dtype=torch.float64)
    assert torch.trapezoid(density.smooth(points, 0.1), points).item() == pytest.approx(1, abs=1e-9)
    assert density.histogram()[:, 2].sum().item() == pytest.approx(1, abs=1e-12)
    power = torch.eye(len(given), dtype=torch.float64)
    for order in range(1, 5):
        power = power @ matrix
        forms = [(probe @ power @ probe).item() for probe in probes]
        # Gauss quadrature is exact for these probes; the probes are within the noise of the trace.
        assert density.moment(order) * len(given) == pytest.approx(sum(forms) / len(forms), rel=1e-10)
        trace = Trace.of(forms)
        assert abs(trace.value - (given**order).sum().item()) < 4 * trace.error
    share = density.weights[density.values > 5].sum().item()
    assert share == pytest.approx(10 / 300, rel=0.3)


class Random(nn.Module):
    """Everything that a second forward would change: running statistics, masks, generators."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_training_is_bit_for_bit_the_same(precision: torch.dtype) -> None:
    def trained(watching: bool) -> tuple[dict[str, Tensor], list[Tensor | None], Tensor]:
        torch.manual_seed(0)
        model = Random().to(precision)
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        x, target = torch.randn(16, 6, dtype=precision), torch.randint(3, (16,))
        curvature = Curvature(lambda: F.cross_entropy(model(x), target), every=1, steps=4, density=True)
        watcher = bpkit.watch(model, optimizer, diagnostics=[curvature] if watching else [])
        for _ in range(5):
            optimizer.zero_grad()
            F.cross_entropy(model(x), target).backward()
            optimizer.step()
        watcher.close()
        assert watching is (curvature.spectrum is not None)
        return model.state_dict(), [each.grad for each in model.parameters()], torch.rand(4)

    (with_it, grads, drawn), (without, others, other) = trained(True), trained(False)
    assert all(torch.equal(with_it[name], without[name]) for name in without)
    assert all(torch.equal(one, two) for one, two in zip(grads, others, strict=True))
    assert torch.equal(drawn, other)


def test_the_trainer_hands_over_its_loss() -> None:
    x, target = randn(64, 4).float(), torch.arange(64) % 3
    model = nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5), nn.Linear(5, 3))
    curvature = Curvature(every=5)
    trainer = bpkit.Trainer(model, optimizer=("sgd", {"lr": 0.1}), diagnostics=[curvature], progress=False)
    trainer.fit((x, target), steps=6)
    found = curvature.spectrum
    assert found is not None
    assert (found.step, found.threshold) == (6, pytest.approx(20))
    assert math.isfinite(found.sharpness)
    bpkit.Trainer(model, diagnostics=["curvature"], progress=False).fit((x, target), steps=1)


def test_it_is_opt_in_and_says_what_it_lacks(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    assert not bpkit.plugins.registry().diagnostics["curvature"].default
    with bpkit.watch(model, optimizer, diagnostics=["curvature"]):
        optimizer.step()
    assert "curvature needs the loss: Curvature(lambda:" in caplog.text
    with pytest.raises(BpkitError, match="steps must be at least 1"):
        Curvature(steps=0)
    with pytest.raises(BpkitError, match="closure must be a function"):
        Curvature(torch.zeros(()))  # type: ignore[arg-type]
