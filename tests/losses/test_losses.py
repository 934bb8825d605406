"""The losses where their samples do not reach: nothing kept, saturated probabilities, dtypes, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import bpkit.functional

BOTH = (bpkit.functional, F)
logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
target = torch.tensor([0, 1, 2, 1])
probabilities = torch.softmax(logits, 1)


def gradient(loss: Any, *inputs: Tensor) -> list[Tensor]:
    leaves = [each.clone().requires_grad_() for each in inputs]
    output = loss(*leaves)
    return [output.detach(), *torch.autograd.grad(output.abs().sum(), leaves)]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("indices", [[-100] * 4, [-100, 1, -100, 2]], ids=["all ignored", "some"])
@pytest.mark.parametrize("weight", [None, torch.zeros(3)], ids=["plain", "weights of 0"])
def test_what_is_ignored_has_no_gradient(
    reduction: str, smoothing: float, indices: list[int], weight: Tensor | None
) -> None:
    """The mean over nothing is NaN; its gradient, as torch's, is 0 at every ignored position."""
    settings = {"reduction": reduction, "label_smoothing": smoothing, "weight": weight}
    ours, theirs = (
        gradient(lambda x, fn=fn: fn.cross_entropy(x, torch.tensor(indices), **settings), logits)
        for fn in BOTH
    )
    torch.testing.assert_close(ours, theirs, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_probabilities_of_another_dtype_promote_the_loss(dtype: torch.dtype) -> None:
    ours, theirs = (fn.cross_entropy(logits, probabilities.to(dtype)) for fn in BOTH)
    assert ours.dtype is theirs.dtype


def test_saturated_probabilities_have_torchs_gradient_in_double_precision() -> None:
    certain = torch.tensor([0.0, 1.0, 0.5, 1e-30], dtype=torch.float64)
    labels = torch.tensor([1.0, 0.0, 1.0, 0.5], dtype=torch.float64)
    ours, theirs = (gradient(lambda x, fn=fn: fn.binary_cross_entropy(x, labels), certain) for fn in BOTH)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_l1_takes_complex_numbers(reduction: str) -> None:
    pair = torch.randn(2, 5, dtype=torch.complex128)
    ours, theirs = (gradient(lambda x, t, fn=fn: fn.l1_loss(x, t, reduction=reduction), *pair) for fn in BOTH)
    torch.testing.assert_close(ours, theirs)


ERRORS = {
    "int32 target": lambda fn: fn.cross_entropy(logits, target.int()),
    "bool target": lambda fn: fn.cross_entropy(logits, target.bool()),
    "integer logits": lambda fn: fn.cross_entropy(logits.long(), target),
    "ignored with probabilities": lambda fn: fn.cross_entropy(logits, probabilities, ignore_index=1),
    "smoothing": lambda fn: fn.cross_entropy(logits, target, label_smoothing=1.1),
}


@pytest.mark.parametrize("call", ERRORS.values(), ids=ERRORS)
def test_errors_are_torchs(call: Any) -> None:
    errors = []
    for functional in BOTH:
        with pytest.raises(Exception) as caught:  # noqa: PT011 - compared below
            call(functional)
        errors.append((caught.type, str(caught.value)))
    assert errors[0] == errors[1]
