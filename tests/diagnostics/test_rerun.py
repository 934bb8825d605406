"""A step that is run again to see where NaN began: it names who made it, and leaves no trace."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam

import bpkit
from bpkit.diagnostics import Finding
from bpkit.diagnostics.aside import own_copy, tensors_within
from bpkit.diagnostics.instruments import Sentinel
from tests.diagnostics.scaled import train

pytestmark = [pytest.mark.cpu, pytest.mark.usefixtures("nothing_breaks")]

WRONG = 15  # a step that is not sampled


class Mask(nn.Module):
    """Minus infinity where the softmax that follows is to give 0."""

    def forward(self, x: Tensor) -> Tensor:
        return x.masked_fill(torch.arange(x.shape[-1]) > 5, -torch.inf)


class Log(nn.Module):
    """NaN, of a negative number, where the batch has five rows; infinite, of 0, where it has six."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - 1 if len(x) == 5 else x - x.detach() if len(x) == 6 else x + 2).log()


def masked(mask: type[nn.Module]) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Linear(8, 8), mask(), nn.Softmax(-1), nn.Linear(8, 8), nn.Softmax(-1), Log(), nn.Linear(8, 3))
    )


def nonfinite(model: nn.Module, batches: Callable[[bool], list[Any]]) -> Finding:
    """What is found where the last micro-batch of a step is bad."""
    optimizer = SGD(model.parameters(), 1e-3)
    with bpkit.watch(model, optimizer, diagnostics=["nonfinite"]) as watcher:
        for step in range(1, WRONG + 2):
            optimizer.zero_grad()
            for batch in batches(step == WRONG):
                model(batch).square().mean().backward()
            optimizer.step()
        (finding,) = watcher.findings
    assert finding.step == WRONG
    return finding


@pytest.mark.parametrize("rows", [5, 6], ids=["NaN", "infinite"])
@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("mask", [nn.Identity, Mask])
def test_the_micro_batch_that_is_bad_is_blamed(mask: type[nn.Module], parts: int, rows: int) -> None:
    def batches(bad: bool) -> list[Tensor]:
        return [torch.randn(rows if bad and part == parts - 1 else 4, 8) for part in range(parts)]

    finding = nonfinite(masked(mask), batches)
    assert finding.layers == ("5",), finding
    assert "'5' (Log), in its forward" in finding.advice


class Scores(nn.Module):
    """The mask comes with the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.soft, self.last, self.log = nn.Softmax(-1), nn.Linear(8, 8), Log()

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, mask = batch
        return self.log(self.last(self.soft(x + mask)).softmax(-1))


def test_a_mask_in_the_batch_is_not_its_fault() -> None:
    mask = torch.zeros(8).masked_fill(torch.arange(8) > 5, -torch.inf)
    finding = nonfinite(Scores(), lambda bad: [(torch.randn(5 if bad else 4, 8), mask)])
    assert finding.layers == ("log",), finding


class Policy(nn.Module):
    """Some actions are not allowed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.mask = nn.Linear(8, 16), nn.Linear(16, 8), Mask()

    def forward(self, x: Tensor) -> Tensor:
        return self.mask(self.last(self.first(x).relu()))


@pytest.mark.parametrize("fused", [False, True], ids=["", "fused"])
def test_masked_logits_are_no_fault_while_the_scale_is_found(fused: bool) -> None:
    model = Policy()
    optimizer = Adam(model.parameters(), 1e-3, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30)
    with bpkit.watch(model, optimizer, diagnostics=["nonfinite"]) as watcher:
        train(model, optimizer, scaler, 30, parts=16)
    assert watcher.step > 10
    assert scaler.get_scale() < 2.0**24
    assert watcher.findings == []


class Memory(nn.Module):
    """Writes into what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor, memory: Tensor, seen: SimpleNamespace) -> Tensor:
        given = self.inner(x)
        with torch.no_grad():
            memory.mul_(0.9).add_(given.mean(0).float())
        seen.calls.append(memory.sum().item())
        return self.last((given + memory).relu())


def test_what_a_forward_writes_into_its_arguments_is_written_once() -> None:
    def trained(watched: bool) -> tuple[Tensor, list[float], Tensor]:
        torch.manual_seed(0)
        model, memory, seen = Memory(), torch.zeros(8), SimpleNamespace(calls=[])
        optimizer, scaler = Adam(model.parameters(), 1e-3), torch.amp.GradScaler("cpu", init_scale=2.0**30)
        watcher = bpkit.watch(model, optimizer) if watched else None
        for _ in range(20):
            optimizer.zero_grad()
            for _ in range(12):
                with torch.autocast("cpu", dtype=torch.float16):
                    output = model(torch.randn(32, 8), memory, seen)
                loss = F.cross_entropy(output.float(), torch.randint(4, (32,)))
                scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        if watcher is not None:
            watcher.close()
        return memory, seen.calls, model.inner.weight.detach()

    plain, seen = trained(False), trained(True)
    assert torch.equal(plain[0], seen[0])
    assert plain[1] == seen[1]
    assert torch.equal(plain[2], seen[2])


class Boxed(nn.Module):
    """Takes an object that nobody knows of."""

    def __init__(self) -> None:
        super().__init__()
        self.net = masked(nn.Identity)

    def forward(self, batch: SimpleNamespace) -> Tensor:
        return self.net(batch.x)


def test_a_batch_in_an_object_is_run_again() -> None:
    finding = nonfinite(Boxed(), lambda bad: [SimpleNamespace(x=torch.randn(5 if bad else 4, 8))])
    assert finding.layers == ("net.5",), finding


def test_no_graph_is_held_of_what_is_in_an_object() -> None:
    encoder, model = nn.Linear(8, 8), Boxed()
    optimizer = SGD([*encoder.parameters(), *model.parameters()], 1e-3)
    held: list[weakref.ref[Tensor]] = []
    with bpkit.watch(model, optimizer):
        for _ in range(12):
            code = encoder(torch.randn(4, 8))
            held.append(weakref.ref(code))
            model(SimpleNamespace(x=code)).square().mean().backward()
            del code
        assert not [each for each in held if each() is not None]


class Tagged:
    """With slots alone."""

    __slots__ = ("x",)

    def __init__(self, x: Tensor) -> None:
        self.x = x


def test_a_copy_is_of_all_tensors_there_are() -> None:
    x = torch.arange(10.0)[:2]
    given = [x, {"again": x}, Tagged(x)]
    assert tensors_within(given) == [x]
    plain, named, tagged = own_copy(given)
    assert plain is named["again"] is tagged.x is not x
    assert torch.equal(plain, x)
    assert plain.untyped_storage().nbytes() == 2 * x.itemsize  # not of all that it is a view of
    assert tensors_within(range(3)) == []
    assert tensors_within(nn.Linear(1, 1)) is None
    assert tensors_within(each for each in x) is None


@pytest.mark.skipif(not distributed.is_available(), reason="this torch has no distributed")
def test_one_rank_alone_runs_nothing_again(tmp_path: Path) -> None:
    import torch.testing._internal.distributed.fake_pg  # whose collectives wait for nobody
    from torch._C._distributed_c10d import FileStore

    store = FileStore(str(tmp_path / "store"), 2)
    distributed.init_process_group("fake", store=store, rank=0, world_size=2)
    try:
        finding = nonfinite(masked(nn.Identity), lambda bad: [torch.randn(5 if bad else 4, 8)])
    finally:
        distributed.destroy_process_group()
    assert "every layer has it" in finding.advice


@pytest.mark.parametrize("fused", [False, True], ids=["", "fused"])
def test_no_batch_is_held_from_step_to_step(fused: bool) -> None:
    model = nn.Linear(8, 4)
    optimizer = Adam(model.parameters(), 1e-3, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    with bpkit.watch(model, optimizer, diagnostics=["nonfinite"]) as watcher:
        train(model, optimizer, scaler, 20, parts=2)
        assert watcher.step == 20
        assert watcher.instrument(Sentinel)._calls.take() == []
