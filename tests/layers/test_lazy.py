"""A lazy layer becomes bpkit's ordinary one on its first call, whoever made it."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

import bpkit
import bpkit.nn

CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "LazyLinear": ((4,), (2, 3)),
    **{
        f"Lazy{kind}{axes}d": ((4, 1), (2, 3, *(5,) * axes))
        for kind in ("Conv", "ConvTranspose")
        for axes in (1, 2, 3)
    },
}

every_lazy = pytest.mark.parametrize("name", CASES)


def made(name: str, whose: object) -> tuple[nn.Module, Tensor]:
    args, shape = CASES[name]
    return getattr(whose, name)(*args), torch.ones(shape)


@every_lazy
def test_a_converted_lazy_layer_becomes_bpkits(name: str) -> None:
    module, input = made(name, nn)
    bpkit.convert(module)
    assert type(module) is getattr(bpkit.nn, name)
    module(input)
    assert type(module) is getattr(bpkit.nn, name.removeprefix("Lazy"))
    bpkit.revert(module)
    assert type(module) is getattr(nn, name.removeprefix("Lazy"))


@every_lazy
def test_one_that_is_reverted_before_its_first_call_becomes_torchs(name: str) -> None:
    module, input = made(name, nn)
    bpkit.revert(bpkit.convert(module))
    module(input)
    assert type(module) is getattr(nn, name.removeprefix("Lazy"))


@every_lazy
def test_state_and_pickle_before_and_after_the_first_call(name: str) -> None:
    module, input = made(name, bpkit.nn)
    waiting = [copy.deepcopy(module), pickle.loads(pickle.dumps(module))]
    expected = module(input)
    for other in waiting:
        assert type(other) is getattr(bpkit.nn, name)
        other.load_state_dict(module.state_dict())
        assert torch.equal(other(input), expected)
        assert type(other) is type(module)
    assert torch.equal(pickle.loads(pickle.dumps(module))(input), expected)
