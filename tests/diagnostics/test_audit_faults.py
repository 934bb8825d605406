"""The live audit on wrong backwards: each is named with its error; what cannot be compared is said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bpkit
from bpkit.diagnostics.audit import Audit
from tests.diagnostics.audited import WrongLinear, seeded, trained


class Old(torch.autograd.Function):
    """x², its backward 10 % too small, in the older style."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        ctx.save_for_backward(input)
        return input * input

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return 1.8 * ctx.saved_tensors[0] * grad_output


class Right(torch.autograd.Function):
    @staticmethod
    def forward(input: Tensor, power: int) -> Tensor:
        return input**power

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.power = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        return ctx.power * ctx.saved_tensors[0] ** (ctx.power - 1) * grad_output, None


class Step(torch.autograd.Function):
    """A straight-through estimator: constant in pieces, its backward an identity on purpose."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        return input.round()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return grad_output


class Unfollowed(Right):
    @staticmethod
    def forward(input: Tensor, power: int) -> Tensor:
        return torch.from_numpy(input.detach().numpy() ** power)


class Using(nn.Module):
    """A container whose own forward calls a Function, through an alias, between two layers."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.first, self.function, self.last = nn.Linear(6, 5), function, nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))


def using(function: type[torch.autograd.Function], *args: Any) -> nn.Module:
    apply = function.apply
    return seeded(lambda: nn.Sequential(Using(lambda x: apply(x, *args)), nn.Linear(3, 2)), torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_subclass_with_a_wrong_backward_is_named_with_its_error(dtype: torch.dtype) -> None:
    model = seeded(
        lambda: nn.Sequential(nn.Linear(6, 5), WrongLinear(5, 5), nn.Tanh(), nn.Linear(5, 3)), dtype
    )
    audit = Audit()
    (finding,) = trained(bpkit.convert(model), audit, dtype=dtype)
    assert (finding.kind, finding.severity, finding.layers) == ("audit", "critical", ("1",))
    assert finding.evidence["error"] == pytest.approx(0.01, rel=1e-2)
    assert audit.errors["1"] == pytest.approx(0.01, rel=1e-2)
    assert finding.evidence["autograd_error"] < 1e-5
    assert "∂L/∂(weight)" in finding.advice
    assert "bpkit.verify(model.get_submodule('1')" in finding.advice
    assert "Audit(exclude=['1'])" in finding.advice
    assert trained(model, Audit(exclude=["1"]), dtype=dtype) == []


def test_a_wrong_backward_of_a_registered_class_is_found_and_revert_advised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = bpkit.nn.Tanh.forward
    monkeypatch.setattr(bpkit.nn.Tanh, "forward", lambda self, x: _Twice.call(right(self, x)))
    model = bpkit.convert(seeded(lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))))
    (finding,) = trained(model, Audit())
    assert finding.layers == ("1",)
    assert finding.evidence["error"] == pytest.approx(1, rel=1e-4)
    assert "bpkit.revert(model.get_submodule('1'))" in finding.advice


class _Twice(bpkit.Function):
    """The identity, its backward doubled."""

    @staticmethod
    def forward(input: Tensor) -> Tensor:
        return input.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return 2 * grad_output


@pytest.mark.parametrize("function", [Old])
def test_a_users_function_is_compared_with_its_own_forward(function: type[torch.autograd.Function]) -> None:
    model, before = using(function), function.__dict__["forward"]
    (finding,) = trained(model, Audit(), dtype=torch.float64)
    assert (finding.severity, finding.layers) == ("critical", ("0",))
    assert finding.evidence["error"] == pytest.approx(0.1, rel=1e-9)
    assert "the backward of Old in 0" in finding.advice
    assert "exclude=['Old']" in finding.advice
    (note,) = trained(using(function), Audit(exclude=["Old"]), dtype=torch.float64)
    assert note.severity == "info"
    assert "nothing was compared" in note.advice
    assert function.__dict__["forward"] is before


def test_a_right_function_is_clean() -> None:
    audit = Audit()
    assert trained(using(Right, 3), audit, dtype=torch.float64) == []
    assert audit.errors["0"] < 1e-14


@pytest.mark.parametrize(
    ("function", "args", "reason"),
    [(Step, (), "derivative of zero"), (Unfollowed, (2,), "autograd cannot follow")],
    ids=["straight-through", "numpy"],
)
def test_what_cannot_be_compared_is_said(
    function: type[torch.autograd.Function], args: tuple[Any, ...], reason: str
) -> None:
    audit = Audit()
    (finding,) = trained(using(function, *args), audit, dtype=torch.float64)
    assert (finding.kind, finding.severity, finding.layers) == ("audit", "info", ("0",))
    assert reason in audit.skipped["0"]
    assert reason in finding.advice


def test_a_hand_written_layer_that_torch_does_not_have_is_taken_function_by_function() -> None:
    class Power(bpkit.Handwritten, nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(5))

        def forward(self, x: Tensor) -> Tensor:
            return _Twice.call(x * self.scale)

    model = seeded(lambda: nn.Sequential(nn.Linear(6, 5), Power(), nn.Linear(5, 3)))
    (finding,) = trained(model, Audit())
    assert finding.layers == ("1",)
    assert finding.evidence["error"] == pytest.approx(1, rel=1e-5)
