"""Identity, Flatten, Unflatten: the same elements under another shape.

    Identity     y = x
    Flatten      y[n, k] = x[n, i, j, ...],  k the row-major position of (i, j, ...)
    Unflatten    y[n, i, j, ...] = x[n, k]                              ∂L/∂x is δ in x's shape

They are torch's own views, whose backward is a view as well: there is no arithmetic to write by hand, and
a copy would break in-place use of the result.

Saved: nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from bpkit.core.module import Handwritten
from bpkit.core.spec import LayerSpec, Sample, randn


class Identity(Handwritten, nn.Identity):
    """`torch.nn.Identity`."""

    def forward(self, input: Tensor) -> Tensor:
        return input


class Flatten(Handwritten, nn.Flatten):
    """`torch.nn.Flatten`."""

    def forward(self, input: Tensor) -> Tensor:
        return input.flatten(self.start_dim, self.end_dim)


class Unflatten(Handwritten, nn.Unflatten):
    """`torch.nn.Unflatten`."""

    def forward(self, input: Tensor) -> Tensor:
        return input.unflatten(self.dim, self.unflattened_size)


def _identity() -> Iterable[Sample]:
    yield Sample(inputs=(randn(2, 3),))


def _flatten() -> Iterable[Sample]:
    yield Sample(inputs=(randn(2, 3, 2, 2),))
    yield Sample(args=(0, -2), inputs=(randn(2, 3, 2),), label="leading axes")


def _unflatten() -> Iterable[Sample]:
    yield Sample(args=(1, (2, 3)), inputs=(randn(2, 6),))
    yield Sample(args=(-1, (2, -1, 1)), inputs=(randn(3, 4),), label="last axis")


def _spec(module: Any, samples: Any, summary: str) -> LayerSpec:
    return LayerSpec(
        name=module.__name__,
        module=module,
        reference=getattr(nn, module.__name__),
        samples=samples,
        saves="nothing",
        saved_bytes=lambda module, inputs, output: 0,
        summary=summary,
    )


SPECS = (
    _spec(Identity, _identity, "its input"),
    _spec(Flatten, _flatten, "several axes into one, a view"),
    _spec(Unflatten, _unflatten, "one axis into several, a view"),
)
