"""Many figures by few kernels are those that each would have had alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bpkit
from bpkit.diagnostics import Diagnostic, Sample
from bpkit.diagnostics.instruments import (
    Activations,
    Batch,
    Deltas,
    Direction,
    GradientHistogram,
    Instrument,
    Update,
    activations,
    by_rows,
)
from bpkit.diagnostics.instruments.figures import STACKED, batch, to_host
from bpkit.diagnostics.subject import Subject


def test_rows_of_any_lengths_and_dtypes_keep_their_places() -> None:
    torch.manual_seed(0)
    lengths = [3, 7, 3, 3, 7, 1]
    one: list[Tensor | None] = [torch.randn(length, dtype=torch.float64) for length in lengths]
    one[3] = torch.randn(3)
    other: list[Tensor | None] = [torch.ones(length, dtype=torch.float64) for length in lengths]
    other[4] = None
    calls = []

    def function(a: Tensor, b: Tensor) -> Tensor:
        calls.append(a.shape)
        return torch.stack([a.sum(1), (a * b).norm(dim=1)], 1)

    found = by_rows(function, one, other)
    (numbers,) = to_host([found])
    values = found.finish(numbers)
    assert values[4] is None
    for place, tensor in enumerate(one):
        if place != 4 and tensor is not None:
            assert values[place] == pytest.approx((float(tensor.sum()), float(tensor.norm())))
    assert sorted(calls) == [(1, 1), (1, 3), (1, 7), (2, 3)]


def test_what_is_stacked_at_once_is_bounded() -> None:
    sizes = []

    def function(a: Tensor) -> Tensor:
        sizes.append(a.numel())
        return a.sum(1, keepdim=True)

    many = [torch.ones(1 << 20) * place for place in range(9)]
    found = by_rows(function, many)
    (numbers,) = to_host([found])
    assert [value[0] for value in found.finish(numbers)] == [place * (1 << 20) for place in range(9)]  # type: ignore[index]
    assert max(sizes) == STACKED
    assert len(sizes) == 3


def test_figures_of_every_shape_come_back_by_one_copy() -> None:
    figures = [torch.tensor(1.5), None, 2.0, torch.tensor([3.0, 4.0], dtype=torch.float64), (5.0, 6.0)]
    first, second = batch(figures), batch([torch.tensor(7, dtype=torch.int64)])
    numbers = to_host([first, second])
    assert first.finish(numbers[0]) == [1.5, None, 2.0, (3.0, 4.0), (5.0, 6.0)]
    assert second.finish(numbers[1]) == [7.0]


class FailsAtTheEnd(Instrument):
    """Enqueues its figures, and cannot make sense of them."""

    def read(self, lived: frozenset[int]) -> Batch:
        def finish(numbers: Sequence[list[float]]) -> list[float]:
            raise ValueError("no sense in it")

        return Batch([torch.ones(())], finish)


class Reads(Diagnostic):
    """Keeps the samples."""

    needs = (Activations, Deltas, Update, Direction, GradientHistogram)
    wants = (FailsAtTheEnd,)

    def __init__(self) -> None:
        self.samples: list[Sample] = []

    def observe(self, sample: Sample) -> tuple[()]:
        self.samples.append(sample)
        return ()


def _train(model: nn.Module, x: Tensor, steps: int = 3) -> Reads:
    reads = Reads()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    with bpkit.watch(model, optimizer, diagnostics=[reads]):
        for _ in range(steps):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    return reads


def test_an_instrument_that_fails_on_the_host_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    reads = _train(nn.Linear(3, 2), torch.randn(4, 3))
    assert len(reads.samples) == 3
    assert not any(sample.has(FailsAtTheEnd) for sample in reads.samples)
    assert sum("FailsAtTheEnd is no longer measured" in record.message for record in caplog.records) == 1


def test_moments_are_those_of_the_activations_themselves() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 16, 5), nn.ReLU())
    x = torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        outputs = [x]
        for module in model:
            outputs.append(module(outputs[-1]))
    sample = _train(model, x, 1).samples[0]
    for place in range(len(model)):
        output, given = outputs[place + 1].double(), outputs[place].double()
        centred = output - output.mean()
        expected = {
            "mean": output.mean(),
            "std": centred.square().mean().sqrt(),
            "kurtosis": centred.pow(4).mean() / centred.square().mean().square(),
            "zeros": (output == 0).double().mean(),
            "largest": output.abs().max(),
            "input": given.square().mean().sqrt(),
        }
        for name, value in expected.items():
            assert sample.column(Activations, name)[place] == pytest.approx(float(value), rel=1e-4, abs=1e-6)
    saturated = sample.column(Activations, "saturated")
    assert saturated[1] == pytest.approx(float((outputs[2].abs() >= 0.9747).float().mean()))
    assert saturated[0] != saturated[0]


def test_a_large_activation_is_thinned_evenly_in_any_layout() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 16, 64, 64)
    x[:, 3] += 5  # every channel has to be met as often
    model = nn.Sequential(nn.Identity(), nn.Conv2d(16, 4, 1))
    plain = _train(model, x, 1).samples[0].column(Activations, "mean")[0]
    channels_last = _train(model, x.to(memory_format=torch.channels_last), 1).samples[0]
    assert plain == pytest.approx(5 / 16, abs=0.05)
    assert channels_last.column(Activations, "mean")[0] == pytest.approx(5 / 16, abs=0.05)


class InALoop(nn.Module):
    """Runs one layer many times."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(100):
            x = torch.tanh(self.layer(x))
        return x


def test_a_module_that_runs_a_hundred_times_is_looked_at_in_its_first_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stacked: list[int] = []
    taken = activations._moments
    monkeypatch.setattr(
        activations, "_moments", lambda rows, bounds: stacked.append(len(rows)) or taken(rows, bounds)
    )
    model = InALoop()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with bpkit.watch(model, optimizer, diagnostics=["saturated"]) as watcher:
        model(torch.randn(8, 4)).sum().backward()
        optimizer.step()
        assert watcher.sample is not None
        (mean,) = watcher.sample.by_module(Activations, "mean").values()
    assert sum(stacked) == 2 * activations.CALLS  # inputs and outputs, between which tanh is
    assert abs(mean) < 10


def test_what_waits_for_its_moments_is_bounded_however_many_parts_a_batch_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(activations, "HELD", 4096)
    sizes: list[int] = []
    taken = activations._moments
    monkeypatch.setattr(
        activations, "_moments", lambda rows, bounds: sizes.append(rows.numel()) or taken(rows, bounds)
    )
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
    optimizer, x = torch.optim.SGD(model.parameters(), 0.1), torch.randn(32, 8, 64)
    with bpkit.watch(model, optimizer, diagnostics=["saturated"]) as watcher:
        for part in x:
            model(part).sum().backward()
        optimizer.step()
        assert watcher.sample is not None
        means = watcher.sample.column(Activations, "input")
    assert max(sizes) <= 4096 + 512
    assert len(sizes) > 10
    assert means[0] == pytest.approx(
        float(x.square().mean((1, 2)).sqrt().mean()), rel=1e-4
    )  # of all parts alike


@pytest.mark.parametrize("behind", [nn.Identity(), nn.Dropout(0.0)], ids=["identity", "dropout"])
def test_a_tensor_that_is_handed_on_counts_for_each_module_by_its_own_bounds(behind: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), behind)
    with torch.no_grad():
        model[0].weight.mul_(100)
    saturated = _train(model, torch.randn(16, 4), 1).samples[0].column(Activations, "saturated")
    assert saturated[1] is not None
    assert saturated[1] > 0.8
    assert saturated[2] != saturated[2]


@pytest.mark.parametrize("size", [1e-12, 1e-6, 1.0, 1e10])
def test_kurtosis_does_not_depend_on_the_size(size: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Identity(), nn.Linear(64, 1))
    kurtosis = _train(model, torch.randn(128, 64) * size, 1).samples[0].column(Activations, "kurtosis")
    assert kurtosis[0] == pytest.approx(3, abs=0.2)


def test_batches_made_in_inference_mode_are_measured() -> None:
    with torch.inference_mode():
        x = torch.randn(16, 4)

    class Copies(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.clone()

    model = nn.Sequential(nn.Identity(), Copies(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with bpkit.watch(model, optimizer) as watcher:
        model(x).sum().backward()
        optimizer.step()
    assert watcher.left_out == {}


def test_updates_of_a_wide_layer_are_not_those_of_a_few_columns() -> None:
    """Every n-th element must not be the same column: of images, the border, where nothing is."""
    torch.manual_seed(0)
    x = torch.randn(16, 784)
    x[:, ::4] = 0  # as many columns as a stride of 196 would meet
    model = nn.Sequential(nn.Linear(784, 4096), nn.Linear(4096, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    reads, before = Reads(), model[0].weight.detach().clone()
    with bpkit.watch(model, optimizer, diagnostics=[reads]):
        model(x).square().mean().backward()
        optimizer.step()
    true = float((model[0].weight.detach() - before).norm())
    measured = reads.samples[0].column(Update, "norm")[0]
    assert measured == pytest.approx(true, rel=0.1)
    assert reads.samples[0].column(Update, "asked")[0] == pytest.approx(0.75, abs=0.02)


class WritesUnseen(torch.autograd.Function):
    """Multiplies by a hundredth, and its backward writes into what it is given, unseen by torch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x / 100

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> Tensor:
        delta.numpy()[...] /= 100
        return delta


class Hundredth(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return WritesUnseen.apply(x)


def test_a_backward_that_writes_over_its_error_has_its_gain() -> None:
    model = nn.Sequential(nn.Linear(4, 4), Hundredth(), nn.Linear(4, 2))
    sample = _train(model, torch.randn(8, 4), 1).samples[0]
    (out, into) = sample[Deltas][1]
    assert into / out == pytest.approx(0.01, rel=1e-3)


def test_directions_and_updates_are_those_of_each_parameter_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    reads, x = Reads(), torch.randn(16, 6)
    moved, cosines, last = [], [], [torch.zeros(())] * 5
    with bpkit.watch(model, optimizer, diagnostics=[reads]):
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            before = [each.detach().clone() for each in model.parameters()]
            optimizer.step()
            grads = [each.grad.flatten().clone() for each in model.parameters() if each.grad is not None]
            moved = [
                float((now - was).detach().norm())
                for now, was in zip(model.parameters(), before, strict=True)
            ]
            cosines = [float(torch.cosine_similarity(g, p, 0)) for g, p in zip(grads, last, strict=True)]
            last = grads
    sample = reads.samples[-1]
    assert sample.column(Update, "norm") == pytest.approx(moved, rel=1e-4)
    assert sample.column(Direction, "last") == pytest.approx(cosines, rel=1e-4)


def test_counts_of_sizes_add_up() -> None:
    subject = Subject(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 1)))
    histogram = GradientHistogram(subject)
    for parameter in subject.parameters:
        parameter.grad = torch.full_like(parameter, 1e-3)
    subject.parameters[0].grad = torch.zeros(3, 3)
    subject.parameters[2].grad = torch.full((3, 3), torch.nan)
    histogram.after_step(torch.optim.SGD(subject.parameters, 0.1))
    figures = histogram.read(frozenset())
    (numbers,) = to_host([figures])
    values = figures.finish(numbers)
    assert [sum(each) for each in values] == [each.numel() for each in subject.parameters]  # type: ignore[arg-type]
    assert values[0][0] == 9
    assert values[2][-1] == 9
