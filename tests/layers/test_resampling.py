"""Resampling: the gradient is the transpose of the map that the forward is, where torch's own is not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bpkit import functional as F

CASES: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    # torch's antialiased backward forgets the scale factor, as does its nearest one of three axes.
    ((3, 3), {"mode": "bicubic", "scale_factor": (1.3, 2.7), "antialias": True, "align_corners": False}),
    ((9, 5), {"mode": "bilinear", "scale_factor": (0.5, 1.3), "antialias": True, "align_corners": True}),
    ((3, 2, 5), {"mode": "nearest", "scale_factor": (1.0, 1.3, 1.3)}),
    # As many outputs as inputs along one axis: copied in the plane, computed elsewhere.
    ((5, 4), {"mode": "nearest", "scale_factor": (3.0, 1.2)}),
    # Longer than a block of inputs, up and down, and by a number that no power of two is.
    ((300,), {"mode": "linear", "size": 451, "align_corners": True}),
    ((300,), {"mode": "nearest-exact", "size": 130}),
    ((1, 290), {"mode": "bicubic", "size": (2, 900), "align_corners": False}),
    ((270,), {"mode": "area", "size": 101}),
]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("sides", "settings"), CASES)
def test_the_gradient_is_the_transpose_of_the_forward(
    sides: tuple[int, ...], settings: dict[str, Any], channels_last: bool
) -> None:
    formats = {2: torch.channels_last, 3: torch.channels_last_3d} if channels_last else {}
    layout = formats.get(len(sides), torch.contiguous_format)
    places = torch.Size(sides).numel()
    units = torch.eye(places, dtype=torch.float64).view(places, 1, *sides).expand(-1, 4, *sides)
    matrix = torch.nn.functional.interpolate(units.contiguous(memory_format=layout), **settings)[:, 0]
    input = torch.randn(2, 4, *sides, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    output = F.interpolate(input, **settings)
    grad_output = torch.randn_like(output)
    (gradient,) = torch.autograd.grad(output, input, grad_output)
    expected = (grad_output.flatten(2) @ matrix.flatten(1).t()).view(input.shape)
    torch.testing.assert_close(gradient, expected, rtol=1e-11, atol=1e-11)
