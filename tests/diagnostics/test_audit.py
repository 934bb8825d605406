"""The live audit: silent on right backwards of every kind, exact on wrong ones, invisible to the training."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import bpkit
from bpkit.core.errors import BpkitError
from bpkit.core.finding import Finding
from bpkit.diagnostics import Diagnostic
from bpkit.diagnostics.audit import Audit, judge
from bpkit.diagnostics.capture import Captures
from bpkit.diagnostics.repeat import repeat


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru = nn.LSTM(6, 5, 2, dropout=0.2, batch_first=True), nn.GRU(5, 4, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden, (last, _) = self.lstm(x[:, None].expand(-1, 4, -1))
        return self.head(self.gru(hidden)[1][-1]) + last[-1, :, :3]


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.block = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.1, batch_first=True)
        self.attention = nn.MultiheadAttention(6, 2, dropout=0.1, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.table((x.abs() * 7).long() % 11)
        hidden = self.block(tokens)
        mask = torch.ones(6, 6, dtype=torch.bool).triu(1)
        return self.head(
            self.attention(hidden, hidden, hidden, attn_mask=mask, need_weights=False)[0].mean(1)
        )


class Checkpointed(nn.Module):
    reentrant = False

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.SiLU(), nn.Dropout(0.2))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.body, x, use_reentrant=self.reentrant))


class Reentrant(Checkpointed):
    reentrant = True


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)),
        nn.Conv2d(1, 4, 2, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Dropout2d(0.2),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.LayerNorm(8),
        nn.PReLU(),
        nn.utils.parametrizations.weight_norm(nn.Linear(8, 3)),
    )


MODELS: dict[str, Callable[[], nn.Module]] = {
    "convolutional": convolutional,
    "recurrent": Recurrent,
    "attending": Attending,
    "checkpointed": Checkpointed,
    "reentrant": Reentrant,
}


def trained(
    model: nn.Module,
    audit: Diagnostic | None,
    *,
    steps: int = 6,
    dtype: torch.dtype = torch.float32,
    autocast: bool = False,
    scale: float = 1.0,
) -> list[Finding]:
    """Some steps on random data; what was found."""
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(1), dtype=dtype).requires_grad_()
    with bpkit.watch(model, optimizer, diagnostics=[audit] if audit else []) as watcher:
        for _ in range(steps):
            optimizer.zero_grad()
            with torch.autocast("cpu", enabled=autocast):
                loss = model(x).square().mean()
            (scale * loss).backward()
            optimizer.step()
    return watcher.findings


def seeded(make: Callable[[], nn.Module], dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return make().to(dtype)


@pytest.mark.parametrize("name", MODELS)
def test_a_converted_model_is_clean_to_rounding(name: str) -> None:
    model = bpkit.convert(seeded(MODELS[name], torch.float64))
    audit = Audit(layers=3)
    assert trained(model, audit, steps=10, dtype=torch.float64) == []
    assert audit.skipped == {}
    converted = {
        path for path in bpkit.converted(model).converted if path not in ("block", "attention.out_proj")
    }
    called = {path for path in converted if "parametrizations" not in path}
    assert audit.errors.keys() >= called - {"block.self_attn.out_proj"}
    assert max(audit.errors.values()) < 1e-12


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("name", MODELS)
def test_low_precision_is_no_finding(name: str, autocast: bool) -> None:
    audit = Audit(layers=20)
    model = bpkit.convert(seeded(MODELS[name]))
    assert trained(model, audit, autocast=autocast) == []
    assert audit.errors


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_gradient_that_is_truly_zero_is_no_finding(dtype: torch.dtype) -> None:
    """Σ δ of the bias ahead of BatchNorm cancels: what is left is rounding, another in any order."""
    model = seeded(
        lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)), dtype
    )
    audit = Audit(layers=10)
    assert trained(bpkit.convert(model), audit, steps=10, dtype=dtype) == []
    assert audit.errors.keys() == {"0", "1", "2", "3"}


class WrongWeight(bpkit.Function):
    """A linear map whose weight gradient is 1 % too large."""

    @staticmethod
    def forward(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return input @ weight.T + bias

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        input, weight = ctx.saved_tensors
        return grad_output @ weight, 1.01 * grad_output.T @ input, grad_output.sum(0)


class WrongLinear(bpkit.nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return WrongWeight.call(input, self.weight, self.bias)


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
    assert trained(using(function), Audit(exclude=["Old"]), dtype=torch.float64) == []
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


@pytest.mark.parametrize("name", MODELS)
def test_training_is_bit_for_bit_the_same(name: str) -> None:
    def outcome(audit: Audit | None) -> tuple[list[Tensor], list[Tensor], Tensor]:
        model = bpkit.convert(seeded(MODELS[name]))
        trained(model, audit, steps=5)
        grads = [each.grad for each in model.parameters() if each.grad is not None]
        return [each.clone() for each in model.state_dict().values()], grads, torch.rand(3)

    audit = Audit(layers=30)
    audited, plain = outcome(audit), outcome(None)
    assert audit.errors
    for one, other in zip(audited[:2], plain[:2], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert torch.equal(audited[2], plain[2])


def test_modules_have_their_turn_and_no_hook_stays() -> None:
    model = bpkit.convert(seeded(lambda: nn.Sequential(*(nn.Linear(6, 6) for _ in range(7)))))
    before = copy.deepcopy([(each._forward_hooks, each._forward_pre_hooks) for each in model.modules()])
    seen: list[set[str]] = []

    class Noting(Audit):
        def columns(self, sample: Any) -> Any:
            return super().columns(sample)

        def observe(self, sample: Any) -> Any:
            findings = list(super().observe(sample))
            seen.append(set(self.columns(sample)["audit"]))
            return findings

    trained(model, Noting(layers=3), steps=3)
    assert seen == [{"0", "1", "2"}, {"3", "4", "5"}, {"6", "0", "1"}]
    assert [(each._forward_hooks, each._forward_pre_hooks) for each in model.modules()] == before


def test_a_call_is_kept_as_it_was_made() -> None:
    """Before an in-place activation wrote over its input, a mean moved and the weights were stepped."""

    class Keeping(Diagnostic):
        needs = (Captures,)

        def attach(self, watcher: Any) -> None:
            self.captures = watcher.instrument(Captures)

        def observe(self, sample: Any) -> Any:
            self.calls = self.captures.calls
            return ()

    layers = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(inplace=True), nn.Dropout(0.5))
    model = bpkit.convert(seeded(lambda: nn.Sequential(*layers, nn.Linear(5, 3))))
    weight, keeping = model[0].weight.detach().clone(), Keeping()
    trained(model, keeping, steps=1)
    calls = keeping.calls
    assert calls.keys() == {"0", "1", "2", "3"}
    assert calls["2"].given[0].min() < 0
    assert torch.equal(calls["0"].module.weight, weight)
    assert not calls["1"].module.running_mean.any()
    assert calls["3"].deltas[0].shape == (8, 5)
    with torch.random.fork_rng():
        torch.set_rng_state(calls["3"].generators[0])
        mask = model[3](torch.ones(8, 5)) != 0
    hidden = model[2](calls["2"].given[0].detach().clone())
    assert torch.equal(repeat(calls["3"], calls["3"].module).outputs[0] != 0, mask & (hidden != 0))


def test_hooks_of_others_see_no_call_of_the_audit() -> None:
    class Counting:
        calls = 0

        def hook(self, module: nn.Module, args: Any, output: Any) -> None:
            self.calls += 1

        def __deepcopy__(self, memo: Any) -> Any:
            raise AssertionError("whom a hook belongs to must not be copied")

    model, counting = (
        bpkit.convert(seeded(lambda: nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3)))),
        Counting(),
    )
    model[0].register_forward_hook(counting.hook)
    audit = Audit()
    assert trained(model, audit, steps=4) == []
    assert audit.errors.keys() == {"0", "1"}
    assert counting.calls == 4


def test_a_subclass_that_computes_something_else_is_not_held_against_torchs() -> None:
    class Doubled(bpkit.nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    audit = Audit()
    assert trained(seeded(lambda: nn.Sequential(Doubled(6, 5), bpkit.nn.Linear(5, 3))), audit) == []
    assert audit.errors["0"] < 1e-5


@dataclass
class Told:
    """A trial whose gradients are given."""

    ours: Tensor
    theirs: Tensor
    exact: Tensor
    rounded: Tensor
    name = label = target = "told"
    swapped = False
    eps = 1e-7

    def handwritten(self) -> dict[str, Tensor]:
        return {"weight": torch.ones(1), "bias": self.ours}

    def reference(self) -> dict[str, Tensor]:
        return {"weight": torch.ones(1), "bias": self.theirs}

    def truth(self, noise: torch.Generator | None = None) -> dict[str, Tensor]:
        return {"weight": torch.ones(1).double(), "bias": self.exact if noise is None else self.rounded}


@pytest.mark.parametrize(
    ("ours", "theirs", "rounded", "wrong"),
    [
        (3e-8, -1e-8, 0.0, False),  # as far from zero as autograd
        (3e-8, 0.0, 2e-8, False),  # as rounding the inputs makes it
        (3e-8, 0.0, 0.0, True),
        (3e-5, 1e-8, 2e-8, True),
    ],
)
def test_what_rounding_explains_is_no_fault(ours: float, theirs: float, rounded: float, wrong: bool) -> None:
    values = [torch.tensor([each]) for each in (ours, theirs)]
    exact = [torch.tensor([each], dtype=torch.float64) for each in (0.0, rounded)]
    assert judge(Told(*values, *exact)).wrong is wrong


def test_a_learning_rule_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = bpkit.RuleSpec(name="tilted", modules={nn.Linear: WrongLinear}, angle=1.0)
    monkeypatch.setattr("bpkit.diagnostics.trials.registry", lambda: SimpleNamespace(rules=(rule,)))
    audit = Audit()
    (finding,) = trained(seeded(lambda: nn.Sequential(WrongLinear(6, 5), bpkit.nn.Linear(5, 3))), audit)
    assert finding.severity == "info"
    assert "on purpose" in audit.skipped["0"]
    assert audit.errors.keys() == {"1"}


def test_a_compiled_model_is_said_to_be_out_of_sight() -> None:
    model = torch.compile(bpkit.convert(seeded(lambda: nn.Sequential(nn.Linear(6, 3)))), backend="eager")
    audit = Audit()
    (finding,) = trained(model, audit)
    assert finding.severity == "info"
    assert "compiled" in audit.skipped["model"]


def test_a_loss_that_is_not_finite_is_left_to_others() -> None:
    model = bpkit.convert(seeded(lambda: nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))))
    assert trained(model, Audit(), scale=float("nan")) == []


def test_it_is_opt_in_and_refuses_what_cannot_be() -> None:
    assert not bpkit.plugins.registry().diagnostics["audit"].default
    with pytest.raises(BpkitError, match="layers must be at least 1"):
        Audit(layers=0)
    with pytest.raises(BpkitError, match="exclude must be a list"):
        Audit(exclude="Step")
