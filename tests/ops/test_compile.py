"""The operators under `torch.compile(fullgraph=True)`: values and gradients as without it."""

import pytest
import torch

from bpkit import ops

CALLS = {
    "arithmetic": lambda x, y: ops.add(ops.mul(x, y), ops.div(x, 3.0), alpha=2),
    "mean of an axis": lambda x, y: ops.mean(x, -1),
    "mean of all": lambda x, y: ops.mean(x),
    "var": lambda x, y: ops.var(x, 0),
    "norm": lambda x, y: ops.norm(x, dim=1),
    "matmul": lambda x, y: ops.matmul(x, y.mT),
    "einsum": lambda x, y: ops.einsum("ij,kj->ik", x, y),
    "cat": lambda x, y: ops.cat([x, y], 1),
    "cat, one constant": lambda x, y: ops.cat([x, y.detach()], 0),
    "stack": lambda x, y: ops.stack([x, y]),
    "reshape of a view": lambda x, y: ops.reshape(x.mT, -1),
    "flatten of a view": lambda x, y: ops.flatten(ops.mul(x, 2).mT),
    "index": lambda x, y: ops.getitem(x, (slice(None), torch.tensor([0, 0, 2]))),
    "gather": lambda x, y: ops.gather(x, 1, torch.zeros(3, 1, dtype=torch.long)),
    "max": lambda x, y: ops.max(x, 1).values,
    "topk": lambda x, y: ops.topk(x, 2).values,
    "masked_fill": lambda x, y: ops.masked_fill(x, torch.eye(3, 4, dtype=torch.bool), 0.0),
    "repeat": lambda x, y: ops.repeat(x, 2, 1),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_compiled_is_as_eager(call):
    x, y = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def gradients(function):
        output = function(x, y)
        return torch.autograd.grad(output.square().sum(), (x, y), allow_unused=True)

    torch._dynamo.reset()
    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    for actual, expected in zip(gradients(compiled), gradients(call), strict=True):
        assert (actual is None) == (expected is None) or not (actual if expected is None else expected).any()
        if actual is not None and expected is not None:
            torch.testing.assert_close(actual, expected)
