"""What torch's CPU gradient of EmbeddingBag gets wrong, and what its samples do not reach."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

import bpkit.nn

LISTED, STARTS = torch.tensor([3, 0, 3, 4, 1, 4, 2, 3]), torch.tensor([0, 2, 2, 5])


def gradient(nn_: object, *inputs: Tensor, **settings: object) -> Tensor:
    module = nn_.EmbeddingBag(6, 3, _weight=torch.arange(18.0).reshape(6, 3), **settings)
    output = module(*inputs)
    weights = torch.linspace(-1, 2, output.numel()).reshape(output.shape)
    (found,) = torch.autograd.grad((output * weights).sum(), module.weight)
    return found


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("padding", [None, 3])
def test_the_frequency_is_that_of_the_index_itself(mode: str, padding: int | None) -> None:
    """In bags of one index each, the gradient is that of torch's Embedding."""
    settings = {"padding_idx": padding, "scale_grad_by_freq": True}
    found = gradient(bpkit.nn, LISTED, torch.arange(len(LISTED)), mode=mode, **settings)
    table = nn.Embedding(6, 3, **settings)
    weights = torch.linspace(-1, 2, 3 * len(LISTED)).reshape(-1, 3)
    (expected,) = torch.autograd.grad((table(LISTED) * weights).sum(), table.weight)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("mode", "padding"), list(itertools.product(["sum", "mean"], [None, 3, -1])))
def test_a_sparse_gradient_is_torchs_entry_by_entry(mode: str, padding: int | None) -> None:
    settings = {"mode": mode, "padding_idx": padding, "sparse": True}
    ours, theirs = (gradient(each, LISTED, STARTS, **settings) for each in (bpkit.nn, nn))
    assert ours.is_sparse
    assert torch.equal(ours._indices(), theirs._indices())
    torch.testing.assert_close(ours._values(), theirs._values())


@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding", [None, 3])
def test_every_mode_and_index_type(mode: str, kind: torch.dtype, padding: int | None) -> None:
    settings = {"mode": mode, "padding_idx": padding, "max_norm": 2.0}
    given = (LISTED.to(kind), STARTS.to(kind))
    torch.testing.assert_close(gradient(bpkit.nn, *given, **settings), gradient(nn, *given, **settings))
