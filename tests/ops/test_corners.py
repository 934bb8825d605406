"""Where an operator's derivative has a pole, a tie or no value: torch's answer, in half precision as well."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import bpkit

INF, NAN = torch.inf, torch.nan

CORNERS: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
    "a small norm in half precision": (lambda x: x.norm(), torch.full((4,), 1e-6, dtype=torch.float16)),
    "the sum of an infinity's exponential": (lambda x: x.logsumexp(0), torch.tensor([INF, 1.0, 2.0])),
    "the largest beside NaN": (lambda x: x.max(), torch.tensor([1.0, NAN, 2.0])),
    "the least beside NaN": (lambda x: x.min(), torch.tensor([1.0, NAN, 2.0])),
    "the median beside NaN": (lambda x: x.median(), torch.tensor([1.0, NAN, 2.0])),
    "0 ln 0": (lambda x: torch.xlogy(x, torch.tensor([0.0, 2.0])).sum(), torch.tensor([0.0, 1.0])),
    "an ignored x ln 0": (
        lambda x: (torch.xlogy(x, torch.tensor([0.0, 2.0])) * torch.tensor([0.0, 1.0])).sum(),
        torch.tensor([3.0, 1.0]),
    ),
}


@pytest.mark.parametrize("name", CORNERS)
def test_a_corner_is_torchs(name: str) -> None:
    function, value = CORNERS[name]
    ours, theirs = (value.clone().requires_grad_() for _ in range(2))
    with bpkit.handwritten():
        output = function(ours)
    assert bpkit.coverage(output).share == 1
    output.backward()
    function(theirs).backward()
    torch.testing.assert_close(ours.grad, theirs.grad, equal_nan=True)


def test_softmax_takes_its_dtype_by_position() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    with bpkit.handwritten():
        assert torch.softmax(x, 1, torch.float64).dtype is torch.float64
        assert x.log_softmax(1, torch.float64).dtype is torch.float64
