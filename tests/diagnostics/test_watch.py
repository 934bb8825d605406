"""A watch's norms are the true ones, the training is as without it, and nothing stays behind."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import bpkit
from bpkit.diagnostics.instruments import AccumulatedNorm, GradientNorm, GradientRate, WeightNorm
from tests.diagnostics.watched import Probing, close, named, network, take, true_norms


@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "scaler"])
@pytest.mark.parametrize("fused", [False, True], ids=["foreach", "fused"])
def test_every_norm_is_the_true_one_and_says_what_it_is(
    scaled: bool, fused: bool, device: torch.device
) -> None:
    """Two micro-batches, clipping, and loss scaling by 1,024."""
    model, probing = network().to(device), Probing()
    optimizer = torch.optim.Adam(model.parameters(), 0.01, fused=fused)
    scaler = torch.amp.GradScaler(device.type, init_scale=1024.0, enabled=scaled)
    with bpkit.watch(model, optimizer, scaler=scaler, diagnostics=[probing]):
        for step in range(3):
            optimizer.zero_grad()
            for _ in range(2):
                scaler.scale(model(torch.randn(8, 6)).square().mean()).backward()
            factor = 1024.0 if scaled else 1.0
            accumulated = true_norms(model, lambda parameter, factor=factor: parameter.grad / factor)
            weights = true_norms(model, lambda parameter: parameter)
            if step > 0:  # the first step leaves unscaling to the scaler's step
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
            scaler.step(optimizer)
            used = accumulated if step == 0 else true_norms(model, lambda parameter: parameter.grad)
            scaler.update()
            sample = probing.samples[-1]
            assert sample.step == step + 1
            assert close(named(sample, AccumulatedNorm), accumulated)
            assert close(named(sample, WeightNorm), weights)
            assert close(named(sample, GradientNorm), used)
    assert sample.total(GradientNorm) == pytest.approx(1e-3, rel=1e-2)  # clipped, by torch's own 1e-6 less
    assert sample.readings[AccumulatedNorm].provenance.when == "accumulated"
    assert sample.readings[AccumulatedNorm].provenance.reduced
    assert sample.readings[GradientNorm].provenance.when == "at step"


def test_a_step_that_the_scaler_skips_is_no_sample(device: torch.device) -> None:
    model, probing = network().to(device), Probing()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler(device.type, init_scale=4.0)
    with bpkit.watch(model, optimizer, scaler=scaler, diagnostics=[probing, "nonfinite"]) as watcher:
        for scale in (torch.inf, 1.0):
            optimizer.zero_grad()
            scaler.scale(model(torch.randn(8, 6)).mean() * scale).backward()
            scaler.step(optimizer)
            scaler.update()
    assert watcher.step == 1
    assert close(named(probing.samples[0], AccumulatedNorm), true_norms(model, lambda each: each.grad))
    assert not watcher.findings


def test_training_is_bit_for_bit_the_same() -> None:
    def trained(watched: bool) -> tuple[dict[str, Tensor], Tensor]:
        torch.manual_seed(3)
        model = network()
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        watcher = bpkit.watch(model, optimizer, every=1) if watched else None
        for _ in range(12):
            optimizer.zero_grad()
            loss = model(torch.randn(8, 6)).square().mean()
            loss.backward()
            optimizer.step()
            if watcher is not None:
                watcher.loss(loss)
                watcher.validation(0.5)
        return model.state_dict(), torch.get_rng_state()

    (plain, state), (watched, watched_state) = trained(False), trained(True)
    assert all(torch.equal(plain[name], watched[name]) for name in plain)
    assert torch.equal(state, watched_state)


class Odd(nn.Module):
    """Registered back to front; shared, frozen, unused, sparse and root-owned parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.head = nn.Linear(4, 9, bias=False)
        self.body = nn.Linear(4, 4)
        self.unused = nn.Linear(2, 2)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.table = nn.Embedding(9, 4, sparse=True)
        self.again = nn.Linear(4, 9, bias=False)
        self.again.weight = self.head.weight

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.frozen(self.body(self.table(tokens))) * self.scale
        return self.head(hidden) + self.again(hidden)


def test_odd_parameters_and_the_order_of_layers() -> None:
    model, probing = Odd(), Probing()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.5)
    with bpkit.watch(model, optimizer, diagnostics=[probing]):
        take(model, optimizer, torch.tensor([[1, 1, 3]]))
    sample = probing.samples[0]

    def dense(parameter: nn.Parameter) -> Tensor | None:
        grad = parameter.grad
        return grad.to_dense() if grad is not None and grad.is_sparse else grad

    assert close(named(sample, GradientNorm), true_norms(model, dense))
    assert close(named(sample, AccumulatedNorm), true_norms(model, dense))
    assert list(sample.by_layer(GradientNorm)) == ["table", "body", "model", "head"]
    assert set(sample[GradientRate]) == {0.2}
    assert sample.by_layer(GradientNorm)["body"] == pytest.approx(
        torch.cat([model.body.weight.grad.flatten(), model.body.bias.grad]).norm().item(), rel=1e-6
    )


def test_close_leaves_nothing_behind_and_copies_work_meanwhile(tmp_path: Path) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    watcher = bpkit.watch(model, optimizer, logdir=tmp_path)
    take(model, optimizer, torch.randn(2, 6))
    twin, twins = copy.deepcopy((model, optimizer))
    take(twin, twins, torch.randn(2, 6))
    pickle.loads(pickle.dumps((model, optimizer)))
    assert watcher.step == 1
    watcher.close()
    watcher.close()
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert not any(parameter._post_accumulate_grad_hooks for parameter in model.parameters())
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())
    assert watcher.summary() == "healthy: nothing found in 1 steps"


class Growing(nn.Module):
    """Gets a layer, loses it, and has one that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.never = nn.Linear(4, 4), nn.LazyLinear(3)
        self.extra: nn.Module = nn.Identity()

    def forward(self, input: Tensor) -> Tensor:
        return self.extra(self.body(input))


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_parameters_that_come_and_go_are_seen() -> None:
    model, probing = Growing(), Probing()
    optimizer = torch.optim.SGD([{"params": model.body.parameters()}], 0.1)
    with bpkit.watch(model, optimizer, diagnostics=[probing, "vanishing", "exploding"]) as watcher:
        for extra in (nn.Identity(), nn.Linear(4, 2), nn.Identity(), nn.Linear(4, 2)):
            model.extra = extra
            take(model, optimizer, torch.ones(3, 4))
            assert close(named(probing.samples[-1], GradientNorm), true_norms(model, lambda each: each.grad))
    assert watcher.step == len(probing.samples) == 4
