"""An optimizer that another takes the place of, told from those that step in turn."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from weakref import ReferenceType, ref

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam
from torch.optim.optimizer import _global_optimizer_pre_hooks, register_optimizer_step_pre_hook

import bpkit
from bpkit.diagnostics.turns import LATE, SOON, STRANGE
from tests.diagnostics.by_hand import Probing, holds, network, take

pytestmark = [pytest.mark.cpu, pytest.mark.usefixtures("nothing_breaks")]


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if "steps no more" in each.getMessage()]


@pytest.mark.parametrize("held", [True, False], ids=["held", "gone"])
@pytest.mark.parametrize("named", [True, False], ids=["named", ""])
def test_its_successor_is_watched(
    named: bool, held: bool, probing: Probing, caplog: pytest.LogCaptureFixture
) -> None:
    model = network()
    first = SGD(model.parameters(), 0.1)
    with bpkit.watch(model, first if named else None, diagnostics=[probing]) as watcher:
        for _ in range(12):
            take(model, first)
        if not held:
            watcher.optimizer = None
            del first
            gc.collect()
        second = Adam(model.parameters(), 0.01)
        for _ in range(20):
            true = take(model, second)
            if probing.samples[-1].step == watcher.step:
                holds(probing.samples[-1], true)
    assert watcher.step == 12 + 20 - (SOON if held else 0)
    assert watcher.optimizer is second
    assert probing.samples[-1].step == 20 if held else 30
    assert lines(caplog) == [
        "bpkit: the SGD that was watched steps no more; the watch goes on with the Adam in its place"
    ]


def test_one_that_trains_what_was_frozen_before_is_a_successor(probing: Probing) -> None:
    model = network()
    first, second = SGD(model[4].parameters(), 0.1), SGD(model[:4].parameters(), 0.1)
    with bpkit.watch(model, first, diagnostics=[probing]) as watcher:
        for _ in range(3):
            take(model, first)
        for _ in range(LATE + 4):
            take(model, second)
    assert watcher.step == 3 + 4


class Gan(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.generator, self.critic = network(), nn.Linear(3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.critic(self.generator(x))


def in_turn(*counts: int) -> Iterator[int]:
    while True:
        for place, count in enumerate(counts):
            yield from [place] * count


@pytest.mark.parametrize(
    ("factories", "counts", "steps"),
    [
        pytest.param(
            [lambda gan: gan.generator.parameters(), lambda gan: gan.critic.parameters()],
            (1, 30),
            310,
            id="a critic's steps between",
        ),
        pytest.param([lambda gan: gan.parameters()] * 2, (1, 4), 50, id="over the same parameters"),
    ],
)
@pytest.mark.parametrize("named", [True, False], ids=["named", ""])
def test_those_that_step_in_turn_are_no_successors(
    factories: list[Callable[[Gan], Iterator[nn.Parameter]]],
    counts: tuple[int, ...],
    steps: int,
    named: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    gan = Gan()
    optimizers = [SGD(factory(gan), 1e-3) for factory in factories]
    with bpkit.watch(gan, optimizers[0] if named else None, diagnostics=[]) as watcher:
        for _, place in zip(range(steps), in_turn(*counts), strict=False):
            take(gan, optimizers[place])
    assert watcher.step == steps / sum(counts)
    assert lines(caplog) == []


def test_another_models_optimizer_is_nobodys_successor(caplog: pytest.LogCaptureFixture) -> None:
    model, other = network(), network()
    own, stranger = SGD(model.parameters(), 0.1), SGD(other.parameters(), 0.1)
    with bpkit.watch(model, own, diagnostics=[]):
        take(model, own)
        for _ in range(2 * LATE):
            take(other, stranger)
    assert lines(caplog) == []


def test_the_hooks_go_from_the_successor_too() -> None:
    model, others = network(), dict(_global_optimizer_pre_hooks)
    first, second = SGD(model.parameters(), 0.1), SGD(model.parameters(), 0.1)
    watcher = bpkit.watch(model, first, diagnostics=[])
    take(model, first)
    for _ in range(SOON + 2):
        take(model, second)
    assert watcher.step == 3
    watcher.close()
    for optimizer in (first, second):
        assert not optimizer._optimizer_step_pre_hooks
        assert not optimizer._optimizer_step_post_hooks
    assert _global_optimizer_pre_hooks == others


def test_a_head_that_was_put_on_since_the_last_sample_is_the_models(probing: Probing) -> None:
    model = network()
    first = SGD(model.parameters(), 0.1)
    with bpkit.watch(model, first, diagnostics=[probing]) as watcher:
        for _ in range(12):
            take(model, first)
        model[4] = nn.Linear(4, 2)
        second = SGD(model[4].parameters(), 0.1)
        for _ in range(LATE + 4):
            take(model, second)
    assert watcher.step == 12 + 4


def test_a_strangers_parameters_may_become_the_models() -> None:
    model, head = network(), nn.Linear(4, 2)
    first, second = SGD(model.parameters(), 0.1), SGD(head.parameters(), 0.1)
    with bpkit.watch(model, first, diagnostics=[]) as watcher:
        take(model, first)
        second.step()
        model[4] = head
        for _ in range(STRANGE + LATE + 4):
            take(model, second)
    assert watcher.step == 1 + 4


def test_phases_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    model, long = network(), 2 * LATE
    optimizers = [SGD(model[:4].parameters(), 0.01), Adam(model[4].parameters(), 0.001)]
    with bpkit.watch(model, optimizers[0], diagnostics=[]) as watcher:
        for _, place in zip(range(6 * long), in_turn(long, long), strict=False):
            take(model, optimizers[place])
        assert watcher.step == long + (long - LATE) + 2 * long
        assert watcher.optimizer is optimizers[1]
        for _ in range(2 * long + 1):  # it has ended after all
            take(model, optimizers[0])
    assert watcher.optimizer is optimizers[0]
    assert len(lines(caplog)) == 1


def test_what_another_watch_was_given_is_left_to_it(caplog: pytest.LogCaptureFixture) -> None:
    model = network()
    first, second = Adam(model.parameters(), 0.001), SGD(model.parameters(), 0.001)
    one = bpkit.watch(model, first, diagnostics=[])
    take(model, first)
    with bpkit.watch(model, second, diagnostics=[]) as other:
        for _ in range(3 * SOON):
            take(model, second)
    assert (one.step, other.step) == (1, 3 * SOON)
    assert lines(caplog) == []
    for _ in range(SOON + 1):  # the other watch is over
        take(model, second)
    assert one.step == 2
    one.close()


@pytest.mark.parametrize("named", [True, False], ids=["named", ""])
@pytest.mark.parametrize("steps", [1, 13])  # the step that comes is sampled, or not
def test_a_watch_that_nobody_closes_goes_with_its_model(named: bool, steps: int) -> None:
    gc.collect()
    others = dict(_global_optimizer_pre_hooks)

    def abandoned() -> ReferenceType[nn.Module]:
        model = network()
        optimizer = SGD(model.parameters(), 0.1)
        watcher = bpkit.watch(model, optimizer if named else None)
        for _ in range(steps):
            take(model, optimizer)
        assert watcher.step == steps
        return ref(model)

    model = abandoned()
    gc.collect()
    assert model() is None
    assert _global_optimizer_pre_hooks == others


def test_a_watch_that_nobody_holds_goes_on() -> None:
    model, seen = network(), Probing()
    optimizer = SGD(model.parameters(), 0.1)
    bpkit.watch(model, diagnostics=[seen])
    gc.collect()
    for _ in range(4):
        take(model, optimizer)
        gc.collect()
    assert [each.step for each in seen.samples] == [1, 2, 3, 4]


def test_a_hook_that_is_removed_inside_a_step_goes_with_the_next() -> None:
    others = dict(_global_optimizer_pre_hooks)
    model = network()
    optimizer = SGD(model.parameters(), 0.1)
    one, other = (bpkit.watch(model, optimizer, diagnostics=[]) for _ in range(2))
    take(model, optimizer)
    handle = register_optimizer_step_pre_hook(lambda *_: one.close())
    take(model, optimizer)
    handle.remove()
    other.close()
    assert _global_optimizer_pre_hooks == others
