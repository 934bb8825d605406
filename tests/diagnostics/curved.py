"""Losses with curvature: small models, their dense Hessians, and quadratics of a given spectrum."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector

import bpkit
from bpkit.diagnostics.curvature import Curvature, Spectrum
from bpkit.diagnostics.hessian import twice_differentiable


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


def quadratic(eigenvalues: Tensor) -> tuple[nn.Module, Callable[[], Tensor], Tensor]:
    """½ wᵀ A w, A of these eigenvalues."""
    basis = torch.linalg.qr(randn(len(eigenvalues), len(eigenvalues))).Q
    matrix = basis @ torch.diag(eigenvalues) @ basis.T
    model = nn.ParameterList([nn.Parameter(randn(len(eigenvalues)))])
    return model, lambda: model[0] @ matrix @ model[0] / 2, matrix
