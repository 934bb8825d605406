"""Calls that torch's own samples of the operators do not make, against torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import bpkit

DOUBLE = torch.float64
T = torch.tensor

CALLS = {
    "number to a power": lambda x: 2**x + torch.pow(2.5, x),
    "condition as the second argument": lambda x: x.where(x > 0, x * 2),
    "var_mean by position": lambda x: torch.var_mean(x, 1, True, True)[0],
    "std_mean of all": lambda x: sum(torch.std_mean(x, False)),
    "einsum that broadcasts": lambda x: torch.einsum("ij,jk->ik", x[:, :1], x),
    "tile of numbers": lambda x: x.tile(2) + x.tile(1, 2),
    "flip of numbers": lambda x: x.flip(0, 1),
    "axis": lambda x: x.sum(axis=1) + x.mean(axis=-1),
    "keepdims": lambda x: x.sum(dim=1, keepdims=True),
    "clamp_min_": lambda x: (x * 1).clamp_min_(0.1).clamp_max_(0.5),
    "ravel": lambda x: x.mT.ravel(),
    "torch.relu_ of a slice": lambda x: torch.relu_((x * 1)[:, 1:]),
    "erfinv, written over": lambda x: torch.erfinv(x.tanh()).add_(1),
    "matmul, written over": lambda x: torch.matmul(x[0], x[None].mT).add_(1),
    "einsum, written over": lambda x: torch.einsum("ij,kj->ki", x, x)[:, 1:].mul_(2),
}
KEYS = {
    "two lists": ([0, 1], [1, 2]),
    "list and tensor": ([0, 1], T([1, 2])),
    "tuple and tensor": ((0, 1), T([1, 2])),
    "range and tensor": (range(2), T([1, 2])),
    "array and tensor": (np.array([0, 1]), T([1, 2])),
    "mask of numpy and tensor": (np.array([True, False, True]), T([0, 1])),
    "nothing": [],
    "list of lists": [[0, 1], [1, 2]],
    "list of tensors": [T(0), T(1)],
    "list of a slice": [slice(0, 1)],
    "a truth value and a tensor": (T(True), T([0, 1])),
    "numpy's number and a tensor": (np.int64(1), T([0, 1])),
}
CALLS |= {f"x[{name}]": lambda x, key=key: x[key] for name, key in KEYS.items()}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_values_and_gradients_are_torchs(call):
    x = torch.randn(3, 4, dtype=DOUBLE, generator=torch.Generator().manual_seed(1), requires_grad=True)

    def run() -> tuple[Tensor, Tensor]:
        output = call(x)
        weight = torch.arange(1, output.numel() + 1).reshape(output.shape).cos()
        return output.detach(), torch.autograd.grad((output * weight).sum(), x)[0]

    expected = run()
    with bpkit.handwritten():
        actual = run()
    torch.testing.assert_close(actual, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    "write",
    [
        lambda i: i.add_(0.5),
        lambda i: i.div_(2),
        lambda i: i.mul_(T([0.5, 0.5, 0.5])),
        lambda i: (i > 0).add_(1),
    ],
)
def test_a_result_that_does_not_fit_is_refused_in_torchs_words(write):
    with pytest.raises(RuntimeError, match="can't be cast to the desired output type"), bpkit.handwritten():
        write(torch.arange(3))


def test_sparse_and_nested_tensors_are_left_to_torch():
    x = torch.randn(3, 2, requires_grad=True)
    nested = torch.nested.nested_tensor(
        [torch.randn(2, 3), torch.randn(4, 3)], layout=torch.jagged, requires_grad=True
    )
    with bpkit.handwritten():
        ((torch.eye(3).to_sparse() @ x).sum() + (nested * 2).sum()).backward()
    torch.testing.assert_close(x.grad, torch.ones(3, 2))
    assert all(each.eq(2).all() for each in nested.grad.unbind())


@pytest.mark.parametrize(
    ("positional", "arguments"),
    [
        ([DOUBLE], {}),
        ([torch.zeros((), dtype=DOUBLE)], {}),
        ([], {"device": "cpu"}),
        (["cpu", DOUBLE, True], {}),
        ([], {"dtype": DOUBLE, "non_blocking": True}),
    ],
)
def test_a_cast_to_what_it_is_is_the_tensor_itself(positional, arguments):
    x = torch.randn(3, dtype=DOUBLE, requires_grad=True)
    with bpkit.handwritten():
        assert x.to(*positional, **arguments) is x
        assert x.to(DOUBLE, copy=True) is not x
        assert x.to(torch.float32).dtype is torch.float32


def test_a_cast_compiles():
    x = torch.randn(3, dtype=DOUBLE, requires_grad=True)

    def cast(x):
        with bpkit.handwritten():
            return (x.to(torch.float32) * x.to(DOUBLE)).sum()

    (gradient,) = torch.autograd.grad(torch.compile(cast, backend="aot_eager", fullgraph=True)(x), x)
    torch.testing.assert_close(gradient, 2 * x.detach(), rtol=1e-6, atol=0)
