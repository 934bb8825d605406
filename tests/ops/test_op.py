"""`op`: a rule beside a forward, and nothing kept but what the rule reads."""

from __future__ import annotations

import pytest
import torch

from bpkit import ops
from bpkit.bench.measure import saved_in
from bpkit.ops import op

scaled = op(
    lambda input, other, factor=2.0: input * other * factor,
    name="scaled",
    input=lambda g, other, factor: g * other * factor,
    other=lambda g, input, factor: g * input * factor,
)


def saved(call) -> int:
    return saved_in(torch.nn.Identity(), call)


def test_gradients_come_from_the_rules_and_sum_what_was_broadcast():
    x, y = (torch.randn(size, dtype=torch.float64, requires_grad=True) for size in ((3, 4), (4,)))
    assert torch.autograd.gradcheck(scaled, (x, y))
    assert torch.autograd.gradgradcheck(scaled, (x, y))
    gradients = torch.autograd.grad(scaled(x, y, factor=3.0).sum(), (x, y))
    torch.testing.assert_close(gradients, (3 * y.expand(3, 4), 3 * x.sum(0)))


def test_only_what_a_wanted_gradient_reads_is_kept():
    x, y = torch.randn(64, requires_grad=True), torch.randn(64)
    assert saved(lambda: scaled(x, y)) == 64 * 4  # y, for x's gradient
    assert saved(lambda: ops.add(x, y)) == 0
    assert saved(lambda: scaled(x, 2.0)) == 0
    assert saved(lambda: ops.sum(x)) == 0


def test_without_a_graph_it_is_the_forward_itself():
    with torch.no_grad():
        assert scaled(torch.ones(2, requires_grad=True), 1.0).grad_fn is None
    assert not scaled(torch.ones(2), 1.0).requires_grad


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: scaled(x), "misses 'other'"),
        (lambda x: scaled(x, x, facto=1), "takes input, other, factor"),
        (lambda x: scaled(x, x, 1.0, 2), "takes input, other, factor; got 4"),
    ],
)
def test_a_call_that_does_not_fit_is_a_type_error(call, message):
    with pytest.raises(TypeError, match=message):
        call(torch.ones(2))


def test_a_complex_gradient_is_by_the_conjugate_of_the_derivative():
    z = torch.randn(3, dtype=torch.complex128, requires_grad=True)
    (ours,), (theirs,) = (
        torch.autograd.grad(function(z).abs().sum(), z)
        for function in (lambda z: ops.exp(ops.mul(z, z)), lambda z: torch.exp(z * z))
    )
    torch.testing.assert_close(ours, theirs)
    with pytest.raises(NotImplementedError, match=r"bpkit\.ops\.atan2: complex tensors"):
        ops.atan2(z, z)


def test_a_dtype_goes_back_to_where_it_came_from():
    x = torch.randn(3, dtype=torch.bfloat16, requires_grad=True)
    y = torch.randn(3, requires_grad=True)
    loss = ops.mul(x, y).sum()
    assert [each.dtype for each in torch.autograd.grad(loss, (x, y))] == [torch.bfloat16, torch.float32]
