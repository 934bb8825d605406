"""The live audit cannot be seen by the training, by the model's hooks, or by anybody's."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bpkit
from bpkit.diagnostics import Diagnostic
from bpkit.diagnostics.audit import Audit
from bpkit.diagnostics.capture import Captures
from bpkit.diagnostics.repeat import repeat
from tests.diagnostics.audited import MODELS, seeded, trained


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
