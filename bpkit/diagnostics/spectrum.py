"""The spectrum of a symmetric matrix that is known by its products with vectors alone.

*Lanczos* (1950) projects the matrix A onto the space spanned by v, Av, A²v, …, where it is tridiagonal. The
eigenvalues of that small matrix T are the Ritz values; the extreme ones reach A's own first. All of them,
with the squared first components of T's eigenvectors as weights, are the nodes of the Gauss quadrature of
vᵀ f(A) v (Golub & Welsch 1969), exact for polynomials of degree 2·steps − 1.

*Hutchinson* (1990): E[zᵀ A z] = tr A for z of independent signs.

*Density*: the two together, stochastic Lanczos quadrature. The mean of zᵀ f(A) z over signs z is tr f(A), so
the nodes from a few z are a sample of A's eigenvalues (Ghorbani, Krishnan & Xiao 2019).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import pi, sqrt

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]
Draw = Callable[[], Tensor]


@dataclass(frozen=True)
class Ritz:
    """What `lanczos` found; float64 on the CPU.

    Attributes:
        values: Ritz values, ascending.
        weights: of the quadrature; they sum to 1.
        errors: by each value, how far at most the nearest eigenvalue of the matrix is.
    """

    values: Tensor
    weights: Tensor
    errors: Tensor


def lanczos(product: Product, start: Tensor, steps: int, draw: Draw) -> Ritz:
    """The Lanczos process with full reorthogonalisation, which keeps rounding from repeating eigenvalues.

    Args:
        product: v ↦ A v for vectors [n].
        start: a vector [n].
        steps: products at most; as many as n give every eigenvalue.
        draw: another random vector, of a continuous distribution, for where the space that `start` spans
            ends: without it an eigenvalue that A has several times would be found once.

    Returns:
        The Ritz values; of a space that `draw` began, their weight is zero.
    """
    steps = min(steps, start.numel())
    basis = start.new_zeros(steps, start.numel())
    diagonal = torch.zeros(steps, dtype=torch.float64, device="cpu")
    beside = diagonal.clone()
    noise = 10 * torch.finfo(start.dtype).eps * sqrt(start.numel())
    basis[0] = start / torch.linalg.vector_norm(start)
    size = 0.0
    for step in range(steps):
        vector = product(basis[step])
        diagonal[step] = torch.dot(basis[step], vector).item()
        vector = _orthogonal(vector, basis[: step + 1])
        length = torch.linalg.vector_norm(vector).item()
        size = max(size, abs(diagonal[step].item()), length)
        if length > noise * size:
            beside[step] = length
        elif step + 1 < steps:
            vector = _orthogonal(draw(), basis[: step + 1])
            length = torch.linalg.vector_norm(vector).item()
        if step + 1 < steps:
            basis[step + 1] = vector / length
    small = torch.diag(diagonal) + torch.diag(beside[:-1], 1) + torch.diag(beside[:-1], -1)
    values, vectors = torch.linalg.eigh(small)
    return Ritz(values, vectors[0].square(), beside[-1] * vectors[-1].abs())


def _orthogonal(vector: Tensor, basis: Tensor) -> Tensor:
    """`vector` without its part in the space of `basis` [k, n]; done twice, which rounding asks for."""
    for _ in range(2):
        vector = vector - basis.T @ (basis @ vector)
    return vector


@dataclass(frozen=True)
class Trace:
    """Hutchinson's estimate of a trace.

    Attributes:
        value: the mean over the probes.
        error: its standard error; NaN from a single probe.
    """

    value: float
    error: float

    @staticmethod
    def of(forms: Sequence[float]) -> Trace:
        """From zᵀ A z of each probe z."""
        values = torch.tensor(forms, dtype=torch.float64, device="cpu")
        error = values.std().item() / sqrt(len(forms)) if len(forms) > 1 else float("nan")
        return Trace(values.mean().item(), error)


@dataclass(frozen=True)
class Density:
    """How eigenvalues are distributed: points with weights that sum to 1.

    Attributes:
        values: the points, ascending.
        weights: the share of eigenvalues that each stands for.
    """

    values: Tensor
    weights: Tensor

    @staticmethod
    def of(found: Sequence[Ritz]) -> Density:
        """From the Lanczos processes of several probes of signs."""
        values, order = torch.cat([each.values for each in found]).sort()
        weights = torch.cat([each.weights for each in found]) / len(found)
        return Density(values, weights[order])

    def moment(self, order: int) -> float:
        """The mean of λ to this power: tr Aᵏ / n."""
        return (self.weights * self.values**order).sum().item()

    def smooth(self, points: Tensor, width: float) -> Tensor:
        """The density at `points`, each eigenvalue widened to a normal distribution of this deviation."""
        distance = (points[:, None] - self.values) / width
        return (self.weights * torch.exp(-(distance**2) / 2)).sum(1) / (width * sqrt(2 * pi))

    def histogram(self, bins: int = 30) -> Tensor:
        """Shares between equal steps from the smallest value to the largest: [bins, (left, right, share)]."""
        low, high = self.values[0].item(), self.values[-1].item()
        if high <= low:
            low, high = low - 0.5, high + 0.5
        edges = torch.linspace(low, high, bins + 1, dtype=torch.float64, device="cpu")
        place = (torch.bucketize(self.values, edges, right=True) - 1).clamp(0, bins - 1)
        shares = torch.zeros(bins, dtype=torch.float64, device="cpu").index_add_(0, place, self.weights)
        return torch.stack([edges[:-1], edges[1:], shares], 1)


def normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """A vector of independent normal numbers, as long as `like`, of its dtype and on its device."""
    return torch.randn(like.numel(), generator=generator, device="cpu").to(like)


def signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """A vector of independent signs likewise."""
    return (2 * torch.randint(0, 2, (like.numel(),), generator=generator, device="cpu") - 1).to(like)
