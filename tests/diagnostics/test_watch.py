from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.util import tensor_util
from torch import Tensor, nn

import bpkit
from bpkit.core.errors import BpkitError
from bpkit.diagnostics import Diagnostic, Finding, gradient_profile
from bpkit.diagnostics.gradient_norm import GradientNorms
from bpkit.diagnostics.instruments import AccumulatedNorm, GradientNorm, GradientRate, WeightNorm
from bpkit.diagnostics.sample import Sample
from bpkit.diagnostics.schedule import Schedule
from bpkit.tensorboard import record

FROM_DYNAMO = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


class Probing(Diagnostic):
    """Asks for everything and keeps every sample."""

    needs = (GradientNorm, AccumulatedNorm, WeightNorm, GradientRate)

    def __init__(self) -> None:
        self.samples: list[Sample] = []

    def observe(self, sample: Sample) -> list[Finding]:
        self.samples.append(sample)
        return []


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(6, 5), nn.Tanh(), nn.Dropout(0.1), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)
    )


def named(sample: Sample, kind: Any) -> dict[str, float | None]:
    return dict(zip([info.name for info in sample.network.parameters], sample[kind], strict=True))


def true_norms(model: nn.Module, of: Callable[[nn.Parameter], Tensor | None]) -> dict[str, float | None]:
    return {
        name: None if (value := of(parameter)) is None else value.detach().double().norm().item()
        for name, parameter in model.named_parameters()
    }


def close(measured: dict[str, float | None], true: dict[str, float | None]) -> bool:
    assert measured.keys() == true.keys()
    assert [value is None for value in measured.values()] == [value is None for value in true.values()]
    pairs = [(measured[name], true[name]) for name in true if true[name] is not None]
    return all(a == pytest.approx(b, rel=1e-6) for a, b in pairs)


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


def take(model: nn.Module, optimizer: Any, *inputs: Any, steps: int = 1) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(*inputs).square().sum().backward()
        optimizer.step()


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


class Wrapped:
    """As Accelerate's: no hooks of its own."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()

    def step(self) -> None:
        self.optimizer.step()


@pytest.mark.parametrize("given", ["optimizer", "wrapper", "none"])
def test_where_a_step_ends(given: str) -> None:
    model, other, probing = network(), network(), Probing()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    stranger = torch.optim.SGD(other.parameters(), 0.1)
    wrapper = Wrapped(optimizer)
    with bpkit.watch(
        model, {"optimizer": optimizer, "wrapper": wrapper, "none": None}[given], diagnostics=[probing]
    ) as watcher:
        take(other, stranger, torch.randn(2, 6))
        take(model, wrapper, torch.randn(2, 6), steps=3)
        take(other, stranger, torch.randn(2, 6))
    assert watcher.step == len(probing.samples) == 3
    take(model, optimizer, torch.randn(2, 6))
    assert watcher.step == len(probing.samples) == 3


def test_a_step_with_a_closure() -> None:
    """As under Lightning: forward and backward run inside `step`."""
    model, probing = network(), Probing()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(torch.randn(8, 6)).square().mean()
        loss.backward()
        return loss

    with bpkit.watch(model, optimizer, diagnostics=[probing]):
        for _ in range(2):
            optimizer.step(closure)
            assert close(named(probing.samples[-1], GradientNorm), true_norms(model, lambda each: each.grad))


def names_of(wrap: Callable[[nn.Module], nn.Module]) -> tuple[str, ...]:
    model = wrap(network())
    probing, optimizer = Probing(), torch.optim.SGD(model.parameters(), 0.1)
    with bpkit.watch(model, optimizer, diagnostics=[probing]):
        take(model, optimizer, torch.randn(2, 6), steps=2)
    assert None not in probing.samples[-1][AccumulatedNorm]
    return tuple(probing.samples[-1].layers)


def compiled_inside(model: nn.Module) -> nn.Module:
    model[3] = torch.compile(model[3], backend="aot_eager")
    return model


def weight_normed(model: nn.Module) -> nn.Module:
    nn.utils.parametrizations.weight_norm(model[3])
    return model


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: torch.compile(model, backend="aot_eager"),
        compiled_inside,
        weight_normed,
        lambda model: nn.DataParallel(model, device_ids=[]),
        lambda model: nn.DataParallel(torch.compile(model, backend="aot_eager"), device_ids=[]),
    ],
    ids=["compiled", "compiled inside", "parametrized", "parallel", "parallel and compiled"],
)
@pytest.mark.cpu
@FROM_DYNAMO
def test_names_are_the_users_own(wrap: Callable[[nn.Module], nn.Module]) -> None:
    assert names_of(wrap) == ("0", "3", "5")


@pytest.mark.cpu
@FROM_DYNAMO
def test_a_compiled_model_is_not_compiled_again() -> None:
    model = torch.compile(network(), backend="aot_eager")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with torch._dynamo.config.patch(error_on_recompile=True), bpkit.watch(model, optimizer, every=3):
        take(model, optimizer, torch.randn(2, 6), steps=20)


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


def test_which_steps_are_sampled() -> None:
    model, probing = network(), Probing()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with bpkit.watch(model, optimizer, every=5, diagnostics=[probing]) as watcher:
        watcher.schedule.budget = float("inf")  # a loaded machine must not thin it
        take(model, optimizer, torch.randn(2, 6), steps=22)
        watcher.step = 40  # as a resumed run
        take(model, optimizer, torch.randn(2, 6), steps=6)
    assert [sample.step for sample in probing.samples] == [*range(1, 11), 15, 20, 45]


def test_the_budget_thins(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0
    monkeypatch.setattr("bpkit.diagnostics.schedule.time.perf_counter", lambda: clock)
    schedule, taken = Schedule(10, 0.06), []
    for step in range(1, 2001):
        clock += 0.001
        if schedule.due(step):
            taken.append(step)
            clock += 0.002
            schedule.took(step, 0.002)
    assert taken[:10] == list(range(1, 11))
    assert schedule.every == 40  # 2 ms in 40 steps of 1 ms: within 6 %; in 20 it is not
    assert schedule.seconds == pytest.approx(0.002 * len(taken))


def test_losses_come_with_the_next_sample() -> None:
    model, probing = network(), Probing()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with bpkit.watch(model, optimizer, diagnostics=[probing]) as watcher:
        for value in (torch.tensor(3.0), 2.0, torch.tensor(torch.nan)):
            take(model, optimizer, torch.randn(2, 6))
            watcher.loss(value)
            watcher.validation(value)
    first, second, third = probing.samples
    assert (first.loss, first.loss_step) == (None, None)
    assert (second.loss, second.loss_step, second.validation) == (3.0, 1, 3.0)
    assert (third.loss, third.loss_step) == (2.0, 2)


class Reports(Diagnostic):
    """Warns at samples 2 and 3, is graver at 4, and breaks at 6."""

    count = 0

    def observe(self, sample: Sample) -> list[Finding]:
        self.count += 1
        if self.count > 5:
            raise ZeroDivisionError("oops")
        if self.count < 2:
            return []
        severity: Any = "critical" if self.count >= 4 else "warning"
        where, step = ("a`b", "<script>"), sample.step
        return [
            Finding(
                kind="odd", severity=severity, layers=where, step=step, last_step=step, evidence={"n": step}
            )
        ]


def test_findings_merge_and_a_broken_diagnostic_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with bpkit.watch(model, optimizer, logdir=tmp_path, diagnostics=[Reports(), GradientNorms()]) as watcher:
        take(model, optimizer, torch.randn(2, 6), steps=8)
    (finding,) = watcher.findings
    assert (finding.severity, finding.step, finding.last_step) == ("critical", 2, 5)
    assert finding.evidence == {"n": 5}
    assert "steps 2 to 5" in watcher.summary()
    assert [record.getMessage().split(",")[0] for record in caplog.records] == [
        "bpkit: warning: odd in a`b",
        "bpkit: critical: odd in a`b",
        "bpkit: diagnostic Reports left out from step 6 on: ZeroDivisionError('oops')",
    ]
    events = EventAccumulator(str(tmp_path)).Reload()
    texts = [tensor_util.make_ndarray(each.tensor_proto)[0] for each in events.Tensors("bpkit/verdicts/odd")]
    assert len(texts) == 2
    assert b"`ab`, `<script>`" in texts[0]
    totals = events.Tensors("gradients/total after clipping")
    assert [each.step for each in totals] == list(range(1, 9))


def test_many_layers_are_one_tensor(tmp_path: Path) -> None:
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(70)))
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    with bpkit.watch(model, optimizer, logdir=tmp_path, diagnostics=["gradient_norm"]) as watcher:
        take(model, optimizer, torch.randn(2, 2))
    events = EventAccumulator(str(tmp_path)).Reload()
    assert len([tag for tag in events.Tags()["tensors"] if tag.startswith("gradients/")]) == 6
    (tensor,) = [tensor_util.make_ndarray(each.tensor_proto) for each in events.Tensors("bpkit/layers")]
    layout = record.Layout.from_json(events.SummaryMetadata("bpkit/layers").plugin_data.content)
    assert layout.layers == tuple(map(str, range(70)))
    assert tensor.shape == (70, len(layout.columns))
    assert layout.columns[0] == "gradient norm"
    (counts,) = [tensor_util.make_ndarray(each.tensor_proto) for each in events.Tensors("bpkit/histograms")]
    assert counts.sum(1).tolist() == [6.0] * 70  # every element of every layer in one bin
    np.testing.assert_allclose(tensor[:, 0], list(watcher.sample.by_layer(GradientNorm).values()), rtol=1e-6)
    picture = gradient_profile(watcher.sample).splitlines()
    assert len(picture) == 36
    assert max(map(len, picture)) <= 80


def test_the_picture_shows_norms_on_a_log_scale() -> None:
    model, probing = network(), Probing()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    with bpkit.watch(model, optimizer, diagnostics=[probing]):
        take(model, optimizer, torch.randn(2, 6))
    caption, *bars = gradient_profile(probing.samples[0]).splitlines()
    assert "step 1" in caption
    norms = probing.samples[0].by_layer(GradientNorm)
    assert [bar.split()[0] for bar in bars] == ["0", "3", "5"]
    lengths = {name: bar.count("█") for name, bar in zip(norms, bars, strict=True)}
    assert sorted(norms, key=norms.__getitem__) == sorted(lengths, key=lengths.__getitem__)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": torch.zeros(1)}, "model must be a torch.nn.Module, not Tensor"),
        ({"optimizer": "adam"}, "optimizer must be a torch.optim.Optimizer or hold one, not 'adam'"),
        ({"every": 0}, "every must be at least 1"),
        ({"budget": 0.0}, r"budget in \(0, 1\]"),
        ({"diagnostics": ["vanish"]}, "unknown diagnostic 'vanish': did you mean 'vanishing'"),
        ({"diagnostics": [3]}, "diagnostics must be names or bpkit.diagnostics.Diagnostic objects, not 3"),
        ({"logdir": "a", "writer": object()}, "logdir or writer, not both"),
    ],
)
def test_bad_arguments_get_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(BpkitError, match=message):
        bpkit.watch(**{"model": network(), **arguments})


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


MISTAKES = {
    "every": ({"every": 2.5}, "every must be at least 1"),
    "budget": ({"budget": "a"}, "every must be at least 1 and budget"),
    "diagnostics": ({"diagnostics": "vanishing"}, "diagnostics must be a list"),
    "writer": ({"writer": 3}, "writer must be"),
    "scaler": ({"scaler": 3}, "scaler must be"),
    "logdir": ({"logdir": 3}, "logdir must be a path"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_an_argument_of_the_wrong_kind_is_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(BpkitError, match=message):
        bpkit.watch(network(), **arguments)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchs_own_writer_takes_the_figures_of_many_layers(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(70)))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with SummaryWriter(str(tmp_path)) as writer, bpkit.watch(model, optimizer, writer=writer):
        take(model, optimizer, torch.ones(3, 2))
    events = EventAccumulator(str(tmp_path)).Reload()
    assert "bpkit/layers" in events.Tags()["tensors"]
