"""The live audit: silent on right backwards of every kind, and on whatever is no fault."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import bpkit
from bpkit.core.errors import BpkitError
from bpkit.diagnostics.audit import Audit, judge
from tests.diagnostics.audited import MODELS, WrongLinear, seeded, trained


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
