"""Curvature against the dense Hessian, against known spectra, and against the training without it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector
from torch.utils.checkpoint import checkpoint

import bpkit
from bpkit.core.errors import BpkitError
from bpkit.diagnostics.curvature import Curvature, Spectrum
from bpkit.diagnostics.edge import edge_of
from bpkit.diagnostics.hessian import Hessian, twice_differentiable
from bpkit.diagnostics.spectrum import Density, Trace, lanczos, normal, signs

Loss = Callable[[nn.Module], Tensor]


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator(), dtype=torch.float64)


class Attending(nn.Module):
    """Attention and a layer that the loss does not reach."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.unused = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, None].expand(-1, 3, -1) * torch.arange(1.0, 4.0, dtype=x.dtype)[:, None]
        return self.attention(x, x, x)[0].mean(1)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x[:, None].expand(-1, 3, -1))[0][:, -1]


MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)),
    "normalised": lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.GELU(), nn.Linear(5, 3)),
    "attention": Attending,
    "recurrent": Recurrent,
}


def made(name: str, converted: bool = False) -> tuple[nn.Module, Callable[[], Tensor]]:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = MODELS[name]().double()
    if converted:
        bpkit.convert(model)
    x, target = randn(9, 4), torch.arange(9) % 3
    return model, lambda: F.cross_entropy(3 * model(x), target)


def dense(model: nn.Module, closure: Callable[[], Tensor]) -> Tensor:
    """The Hessian, a row at a time, of the model by torch alone."""
    parameters = [each for each in model.parameters() if each.requires_grad]
    with twice_differentiable():
        grads = torch.autograd.grad(closure(), parameters, create_graph=True, materialize_grads=True)
        flat = parameters_to_vector(grads)
        rows = [
            parameters_to_vector(
                torch.autograd.grad(row, parameters, retain_graph=True, materialize_grads=True)
            )
            if row.requires_grad
            else torch.zeros_like(flat)
            for row in flat
        ]
    return torch.stack(rows).detach()


def measured(
    curvature: Curvature, model: nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> Spectrum:
    """What it finds at the model as it is: a step at rate zero."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), 0.0)
    with bpkit.watch(model, optimizer, diagnostics=[curvature]):
        optimizer.step()
    assert curvature.spectrum is not None
    return curvature.spectrum


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


def quadratic(eigenvalues: Tensor) -> tuple[nn.Module, Callable[[], Tensor], Tensor]:
    """½ wᵀ A w, A of these eigenvalues."""
    basis = torch.linalg.qr(randn(len(eigenvalues), len(eigenvalues))).Q
    matrix = basis @ torch.diag(eigenvalues) @ basis.T
    model = nn.ParameterList([nn.Parameter(randn(len(eigenvalues)))])
    return model, lambda: model[0] @ matrix @ model[0] / 2, matrix


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


def diverges(model: nn.Module, closure: Callable[[], Tensor], optimizer: torch.optim.Optimizer) -> bool:
    start = closure().item()
    for _ in range(2000):
        optimizer.zero_grad()
        loss = closure()
        if not loss.item() < 1e6 * start:
            return True
        loss.backward()
        optimizer.step()
    return False


SGD = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.8, "nesterov": True},
    "dampened": {"momentum": 0.5, "dampening": 0.5},
}


@pytest.mark.parametrize("settings", SGD.values(), ids=SGD)
@pytest.mark.parametrize(("beyond", "unstable"), [(0.98, False), (1.02, True)])
def test_sgd_diverges_beyond_its_threshold_and_not_below(
    settings: dict[str, float], beyond: float, unstable: bool
) -> None:
    model, closure, _ = quadratic(torch.tensor([4.0, 1.0, 0.5], dtype=torch.float64))
    unit = torch.optim.SGD(model.parameters(), 1.0, **settings)
    edge = edge_of(unit, list(model.parameters()))
    assert edge is not None
    assert edge.plain
    optimizer = torch.optim.SGD(model.parameters(), beyond * edge.threshold / 4.0, **settings)
    found = measured(Curvature(closure), model, optimizer)
    assert found.sharpness / found.threshold == pytest.approx(beyond, rel=1e-6)
    assert diverges(model, closure, optimizer) is unstable


ADAPTIVE: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "adam": lambda parameters: torch.optim.Adam(parameters, 0.01),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, 0.01, betas=(0.5, 0.99)),
    "amsgrad": lambda parameters: torch.optim.Adam(parameters, 0.01, amsgrad=True),
    "bpkit": lambda parameters: bpkit.optim.Adam(parameters, 0.01),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, 0.01, momentum=0.9),
    "centered": lambda parameters: torch.optim.RMSprop(parameters, 0.01, centered=True),
    "adagrad": lambda parameters: torch.optim.Adagrad(parameters, 0.01, lr_decay=0.1),
}


@pytest.mark.parametrize("name", ADAPTIVE)
def test_an_adaptive_optimizer_divides_by_what_its_update_shows(name: str) -> None:
    """P is read off a step: the update of a constant gradient, its average settled, is −lr g / P."""
    parameter = nn.Parameter(randn(6))
    optimizer = ADAPTIVE[name]([parameter])
    momentum = optimizer.param_groups[0].get("momentum", 0.0)
    for _ in range(300):
        parameter.grad = torch.arange(1.0, 7.0, dtype=torch.float64) * (1 + 0.1 * torch.rand(()).item())
        optimizer.step()
    grad = torch.linspace(0.5, 3, 6, dtype=torch.float64)
    before, parameter.grad = parameter.detach().clone(), grad
    state = optimizer.state[parameter]
    for averaged in ("exp_avg", "momentum_buffer"):  # as if it had averaged this gradient alone
        if averaged in state:
            state[averaged].copy_(grad if averaged == "exp_avg" else torch.zeros_like(grad))
    optimizer.step()
    edge = edge_of(optimizer, [parameter])
    assert edge is not None
    rate = optimizer.param_groups[0]["lr"]
    decayed = before * (1 - rate * optimizer.param_groups[0]["weight_decay"]) if name == "adamw" else before
    update = decayed - parameter.detach()
    assert torch.allclose(edge.root(grad) ** 2, update / (rate * grad), rtol=1e-6)
    beta = optimizer.param_groups[0].get("betas", (0.0,))[0]
    expected = (2 + 2 * beta) / (1 - beta) if beta else 2 + 2 * momentum
    assert edge.threshold == pytest.approx(expected / rate)


def test_adam_is_measured_through_its_preconditioner() -> None:
    model, closure = made("mlp")
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    curvature = Curvature(closure, steps=100, every=1)
    with bpkit.watch(model, optimizer, diagnostics=[curvature]):
        for _ in range(3):
            optimizer.zero_grad()
            closure().backward()
            optimizer.step()
    found = curvature.spectrum
    parameters = list(model.parameters())
    edge = edge_of(optimizer, parameters)
    assert found is not None
    assert edge is not None
    root = edge.root(parameters_to_vector(parameters).detach())
    exact = torch.linalg.eigvalsh(root[:, None] * dense(model, closure) * root)
    assert found.sharpness == pytest.approx(exact[-1].item(), rel=1e-8)
    assert found.threshold == pytest.approx(38 / 1e-3)


def test_groups_with_rates_of_their_own_have_one_edge() -> None:
    first, second = nn.Parameter(randn(1)), nn.Parameter(randn(1))
    optimizer = torch.optim.SGD([{"params": [first], "lr": 0.1}, {"params": [second], "lr": 1e-3}], 0.1)
    model = nn.ParameterList([first, second])
    found = measured(Curvature(lambda: (8 * first**2 + 900 * second**2).sum() / 2), model, optimizer)
    assert found.eigenvalues[:2] == pytest.approx((900, 8))
    assert found.threshold == pytest.approx(20)  # of the rate 0.1
    assert found.sharpness == pytest.approx(9)  # 900 · 0.001 / 0.1: the slow group is far from its edge


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


def run(lr: float, *, steps: int = 12, logdir: Path | None = None) -> bpkit.diagnostics.Watcher:
    """Gradient descent on w²/2 · 4 beside a direction that falls whatever happens."""
    model = nn.ParameterList([nn.Parameter(torch.tensor([1e-3]))])
    optimizer = torch.optim.SGD(model.parameters(), lr)
    curvature = Curvature(lambda: 2 * (model[0] ** 2).sum() + 1, every=1, probes=2, density=True)
    with bpkit.watch(model, optimizer, diagnostics=[curvature], logdir=logdir) as watcher:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = 2 * (model[0] ** 2).sum() + 1
            loss.backward()
            optimizer.step()
            watcher.loss(loss)
    return watcher


@pytest.mark.parametrize(("lr", "severity"), [(0.4, None), (0.6, "info"), (4.0, "warning")])
def test_the_edge_is_a_note_and_far_beyond_it_with_a_rising_loss_a_warning(
    lr: float, severity: str | None
) -> None:
    findings = run(lr).findings
    assert [each.severity for each in findings] == ([severity] if severity else [])
    for finding in findings:
        assert finding.kind == "divergence"
        assert finding.evidence["sharpness"] == pytest.approx(4)
        assert finding.evidence["stable_up_to"] == pytest.approx(2 / lr)


def test_what_is_written(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(0.4, steps=3, logdir=tmp_path)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    names = {each for each in events.Tags()["scalars"] if each.startswith("curvature/")}
    assert names == {f"curvature/{each}" for each in ("sharpness", "most negative", "trace", "threshold")}
    assert events.Scalars("curvature/sharpness")[0].value == pytest.approx(4)
    assert "curvature/eigenvalues" in events.Tags()["tensors"]


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
