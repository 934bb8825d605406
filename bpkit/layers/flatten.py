"""Flatten: axes `start_dim` to `end_dim` become one.

    y[n, k] = x[n, i, j, ...],  k the row-major position of (i, j, ...)      ∂L/∂x is δ in x's shape

It is torch's own view, whose backward is a view as well: there is no arithmetic to write by hand, and
a copy would break in-place use of the result.

Saved: nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from bpkit.core.module import Handwritten
from bpkit.core.spec import LayerSpec, Sample, randn


class Flatten(Handwritten, nn.Flatten):
    """`torch.nn.Flatten`."""

    def forward(self, input: Tensor) -> Tensor:
        return input.flatten(self.start_dim, self.end_dim)


def _samples() -> Iterable[Sample]:
    yield Sample(inputs=(randn(2, 3, 2, 2),))
    yield Sample(args=(0, -2), inputs=(randn(2, 3, 2),), label="leading axes")


SPECS = (
    LayerSpec(
        name="Flatten",
        module=Flatten,
        reference=nn.Flatten,
        samples=_samples,
        saves="nothing",
        saved_bytes=lambda module, inputs, output: 0,
        summary="several axes into one, a view",
    ),
)
