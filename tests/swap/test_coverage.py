"""coverage: whose nodes a graph is made of; and what `handwritten()` answers for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import bpkit
import bpkit.nn
from bpkit.core.errors import BpkitError
from bpkit.core.graph import VIEWS
from bpkit.swap.mode import REPLACEMENTS, SPELT


class Foreign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def test_every_kind_of_node_is_counted() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    counted = bpkit.coverage(bpkit.functional.relu(Foreign.apply(x.t() * 2)).sum())
    assert (counted.handwritten, counted.native, counted.views, counted.opaque) == (1, 2, 1, 1)
    assert counted.by_op == {"Sum": 1, "Foreign (opaque)": 1, "Mul": 1, "bpkit.ReLU": 1}
    assert counted.share == 1 / 4
    assert "25.0% hand-written" in str(counted)


def test_a_shared_node_counts_once_and_several_outputs_together() -> None:
    y = torch.randn(3, requires_grad=True).exp()
    assert bpkit.coverage({"a": y + y, "b": [y]}).native == 2


def test_a_compiled_graph_is_opaque() -> None:
    x = torch.randn(3, requires_grad=True)
    counted = bpkit.coverage(torch.compile(lambda x: x.sin().cos(), backend="aot_eager")(x))
    assert (counted.opaque, counted.native) == (1, 0)


@pytest.mark.parametrize("output", [torch.ones(2), {"loss": torch.ones(())}, 3.0])
def test_what_has_no_graph_is_refused(output: Any) -> None:
    with pytest.raises(BpkitError, match="has no graph"):
        bpkit.coverage(output)


def test_the_views_are_those_of_torchs_schemas() -> None:
    """Every node that VIEWS names belongs to an operator that torch declares to return an alias."""
    aliases = {
        schema.name.removeprefix("aten::").lstrip("_").replace("_", "").lower()
        for schema in torch._C._jit_get_all_schemas()
        if schema.returns and any(each.alias_info is not None for each in schema.returns)
    }
    unsafe = {"unsafeview", "unsafesplit", "unsafesplitwithsizes"}  # views of what nobody else holds
    assert {name.removesuffix("Backward").lower() for name in VIEWS} <= aliases | unsafe


def test_unlisted_functions_and_unknown_arguments_run_as_torchs_own() -> None:
    x = torch.rand(3, 3, requires_grad=True)
    with bpkit.handwritten():
        inverse = torch.linalg.inv(x)
        out = torch.add(torch.ones(2), torch.ones(2), out=torch.empty(2))
    assert type(inverse.grad_fn).__name__.startswith("LinalgInvEx")
    assert out.tolist() == [2.0, 2.0]


def test_a_mistake_inside_the_mode_is_torchs_error() -> None:
    x = torch.rand(3, 3, requires_grad=True)
    for call in (lambda: x @ x[0:2], lambda: x + torch.rand(2), lambda: torch.cat([x, 3]), lambda: x.sum(5)):
        with pytest.raises((RuntimeError, TypeError, IndexError)) as ours, bpkit.handwritten():
            call()
        with pytest.raises(type(ours.value)) as theirs:
            call()
        assert str(ours.value).split("\n")[0] == str(theirs.value).split("\n")[0]


def test_an_in_place_operator_writes_and_is_one_node_of_ours() -> None:
    x = torch.randn(3, requires_grad=True)
    scale = torch.randn(3, requires_grad=True)
    with bpkit.handwritten():
        y = x * 1
        before = y
        y += 2
        y *= scale
        assert y is before
        loss = y.sum()
    assert bpkit.coverage(loss).native == 0
    gradients = torch.autograd.grad(loss, (x, scale))
    torch.testing.assert_close(gradients, (scale.detach(), x.detach() + 2))


def test_two_modes_are_one() -> None:
    x = torch.randn(3, requires_grad=True)
    with bpkit.handwritten(), bpkit.handwritten():
        loss = (x * x).mean()
    assert bpkit.coverage(loss).by_op == {"bpkit.Mean": 1, "bpkit.Mul": 1}


def test_every_replacement_is_bpkits() -> None:
    for theirs, ours in (REPLACEMENTS | SPELT).items():
        assert ours is not theirs
        assert ours.__module__.startswith("bpkit."), theirs


@bpkit.handwritten()
def _decorated(x: Tensor) -> Tensor:
    return (x * x).sum()


def test_the_mode_is_a_decorator_too() -> None:
    assert bpkit.coverage(_decorated(torch.randn(3, requires_grad=True))).native == 0


INSIDE = {
    **{name: getattr(bpkit.nn, name)() for name in ("ReLU", "GELU", "SiLU", "Sigmoid")},
    "numbers on the left": lambda x: (1 - x) + (1 / x) + (2**x),
    "a power": lambda x: x**3,
    "in place": lambda x: (x * 1).add_(1).mul_(x),
    "a cast": lambda x: x.double().float(),
    "a part": lambda x: x[torch.tensor([0, 0, 2])].mean(0),
}


@pytest.mark.parametrize("module", INSIDE.values(), ids=INSIDE)
def test_what_is_inside_the_mode_compiles(module: Any) -> None:
    x = torch.rand(3, 4, requires_grad=True)

    def inside(x: Tensor) -> Tensor:
        with bpkit.handwritten():
            return (module(x) * x).sum()

    torch._dynamo.reset()
    compiled: Any = torch.compile(inside, backend="aot_eager", fullgraph=True)
    (actual,) = torch.autograd.grad(compiled(x), x)
    (expected,) = torch.autograd.grad((module(x) * x).sum(), x)
    torch.testing.assert_close(actual, expected)
