"""What each of two processes runs for `test_ranks.py`: small trainings, watched, beside the same by hand."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from torch import Tensor, distributed, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD

import bpkit
from bpkit.diagnostics import Diagnostic, Finding, schedule
from bpkit.diagnostics.instruments import AccumulatedNorm, Direction, GradientNorm, Update, WeightNorm
from bpkit.diagnostics.sample import Sample
from bpkit.plugins.registry import registry

WORLD, ROWS = 2, 4  # rows of a batch that each rank has
STEPS, CLIP, POISONED = 4, 0.05, 13
KINDS = (AccumulatedNorm, GradientNorm, WeightNorm)

Norms = list[list[float]]  # of the kinds, of updates, and cosines with the momentum, by parameter


class Probing(Diagnostic):
    """Keeps every sample; no step is left out, however slow the machine."""

    needs = (*KINDS, Update, Direction)

    def __init__(self) -> None:
        self.samples: list[Norms] = []

    def attach(self, watcher: Any) -> None:
        watcher.schedule.budget = float("inf")

    def observe(self, sample: Sample) -> list[Finding]:
        columns = sample.column(Update, "norm"), sample.column(Direction, "momentum")
        self.samples.append([list(each) for each in (*(sample[kind] for kind in KINDS), *columns)])
        return []


class Steps(Diagnostic):
    """Notes the sampled steps, full and light; to the first rank samples come dearer and dearer."""

    needs = (GradientNorm,)
    wants = (AccumulatedNorm,)

    def __init__(self) -> None:
        self.full: list[int] = []
        self.light: list[int] = []

    def attach(self, watcher: Any) -> None:
        for each in (watcher.schedule, watcher.light_schedule):
            each.clock = lambda: float(watcher.step)
            each.took = self._dearer(each.took, each.budget)

    def _dearer(self, took: Callable[[int, float], None], budget: float) -> Callable[[int, float], None]:
        rate = budget / 12 if distributed.get_rank() == 0 else 0.0
        return lambda step, seconds: took(step, rate * step)

    def observe(self, sample: Sample) -> list[Finding]:
        (self.full if sample.has(AccumulatedNorm) else self.light).append(sample.step)
        return []


def run_on_two_processes(folder: Path) -> None:
    """Leave `rank0.json` and `rank1.json`: by scenario what was seen and what is true."""
    mp.spawn(_worker, args=(folder,), nprocs=WORLD)


def _worker(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=WORLD,
        timeout=timedelta(seconds=20),  # a rank that waits alone is a failure, not a hang
    )
    try:
        found: dict[str, Any] = {
            "ddp": _trained(DistributedDataParallel, logdir=folder / "ddp"),
            "ddp, accumulated": _trained(DistributedDataParallel, parts=2),
            "ddp, scaled": _trained(DistributedDataParallel, parts=2, scale=1024.0),
            "ddp, static": _trained(partial(DistributedDataParallel, static_graph=True)),
            "ddp, unused": _trained(
                partial(DistributedDataParallel, find_unused_parameters=True, gradient_as_bucket_view=True)
            ),
            "fsdp": _trained(_sharded, logdir=folder / "fsdp"),
            "fsdp, accumulated": _trained(_sharded, parts=2),
            "fsdp, scaled": _trained(_sharded, parts=2, scale=1024.0),
            "fsdp, in part": _trained(_sharded_in_part, clip=None),
            "ddp, poisoned": _poisoned(DistributedDataParallel),
            "fsdp, poisoned": _poisoned(_sharded),
            "thinned": [_thinned(every) for every in (1, 3)],
            "ddp, one watches": [_one_watches(DistributedDataParallel, alone) for alone in range(WORLD)],
            "fsdp, one watches": _one_watches(_sharded, 0),
        }
        (folder / f"rank{rank}.json").write_text(json.dumps(found))
    finally:
        distributed.destroy_process_group()


def _network() -> nn.Module:
    """With a bias of one element, of which the second rank has none, and an odd number of rows."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.LayerNorm(5))
    return nn.Sequential(body, nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 1)).double()


def _sharded(model: nn.Module) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    fully_shard(model[0])
    return fully_shard(model)


def _sharded_in_part(model: nn.Module) -> nn.Module:
    """What is not sharded has its gradients reduced by the loop, before the step."""
    from torch.distributed.fsdp import fully_shard

    fully_shard(model[0])
    return model


def _reduce(model: nn.Module) -> None:
    for each in model[1:].parameters():
        distributed.all_reduce(each.grad)
        each.grad /= WORLD


def _local(model: nn.Module, local: bool) -> AbstractContextManager[None]:
    """Backwards inside are not reduced, if so."""
    if hasattr(model, "set_requires_gradient_sync"):
        model.set_requires_gradient_sync(not local)
        return nullcontext()
    return model.no_sync() if local else nullcontext()


def _batches() -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        yield torch.randn(WORLD * ROWS, 6, dtype=torch.float64, generator=generator)


def _norms(of: list[Tensor | None]) -> list[float]:
    return [-1.0 if each is None else torch.linalg.vector_norm(each.detach()).item() for each in of]


def _cosine(one: Tensor, other: Tensor) -> float:
    return torch.cosine_similarity(one.flatten(), other.flatten(), 0, eps=0).item()


def _by_hand(clip: float | None) -> list[Norms]:
    """One process, the whole batch."""
    model = _network()
    optimizer, seen = SGD(model.parameters(), 0.1, momentum=0.5), []
    for batch in _batches():
        model(batch).square().mean().backward()
        grads = [each.grad for each in model.parameters()]
        accumulated = _norms(grads)
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        before = [each.detach().clone() for each in model.parameters()]
        momenta = [optimizer.state[each].get("momentum_buffer") for each in model.parameters()]
        cosines = [
            torch.nan if grad is None or momentum is None else _cosine(grad, momentum)
            for grad, momentum in zip(grads, momenta, strict=True)
        ]
        seen.append([accumulated, _norms(grads), _norms(before)])
        optimizer.step()
        optimizer.zero_grad()
        moves = [now.detach() - was for now, was in zip(model.parameters(), before, strict=True)]
        seen[-1] += [_norms(moves), cosines]
    return seen


def _trained(
    wrap: Callable[[nn.Module], nn.Module],
    *,
    logdir: Path | None = None,
    parts: int = 1,
    scale: float | None = None,
    clip: float | None = CLIP,
) -> dict[str, Any]:
    """Each rank its rows, in `parts`, of which the last is reduced; with all diagnostics beside."""
    model, rank, probing = wrap(_network()), distributed.get_rank(), Probing()
    optimizer = SGD(model.parameters(), 0.1, momentum=0.5)
    scaler = GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
    usual = [each.diagnostic() for each in registry().diagnostics if each.default]
    with (
        _lines() as lines,
        bpkit.watch(model, optimizer, logdir=logdir, diagnostics=[probing, *usual]) as watcher,
    ):
        for batch in _batches():
            pieces = batch[rank * ROWS : (rank + 1) * ROWS].chunk(parts)
            for place, piece in enumerate(pieces):
                with _local(model, local=place < parts - 1):
                    scaler.scale(model(piece).square().mean() / parts).backward()
            if wrap is _sharded_in_part:
                _reduce(model)
            scaler.unscale_(optimizer)
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    findings = [each.kind for each in watcher.findings if each.severity != "info"]
    return {"seen": probing.samples, "true": _by_hand(clip), "lines": lines, "findings": findings}


def _poisoned(wrap: Callable[[nn.Module], nn.Module]) -> dict[str, int]:
    """By kind of finding its first step, where a batch of one rank has NaN in a step that is not sampled."""
    model = wrap(_network())
    optimizer = SGD(model.parameters(), 0.01)
    with bpkit.watch(model, optimizer, diagnostics=["nonfinite"]) as watcher:
        for step in range(1, 23):
            poisoned = step == POISONED and distributed.get_rank() == 1
            batch = torch.full((2, 6), torch.nan if poisoned else 1.0, dtype=torch.float64)
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()
    return {each.kind: each.step for each in watcher.findings}


def _one_watches(wrap: Callable[[nn.Module], nn.Module], alone: int) -> dict[str, Any]:
    """The others train on: what is logged, and how many steps are watched."""
    model = wrap(_network())
    optimizer = SGD(model.parameters(), 0.1)
    watcher = None
    with _lines() as lines:
        if distributed.get_rank() == alone:
            watcher = bpkit.watch(model, optimizer)
        for batch in _batches():
            model(batch).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        if watcher is not None:
            watcher.close()
    hooks = [*model._forward_pre_hooks.values(), *optimizer._optimizer_step_post_hooks.values()]
    ours = [each for each in hooks if type(each).__module__.startswith("bpkit")]
    return {"lines": lines, "steps": watcher and watcher.step, "hooks": len(ours)}


def _thinned(every: int) -> dict[str, Any]:
    """Which steps are sampled when only the first rank finds that samples cost too much."""
    model, steps = DistributedDataParallel(nn.Linear(2, 1)), Steps()
    optimizer = SGD(model.parameters(), 0.0)
    first, schedule.FIRST = schedule.FIRST, 20
    with bpkit.watch(model, optimizer, every=every, diagnostics=[steps]) as watcher:
        for _ in range(200):
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
    schedule.FIRST = first
    thinned = [each.every / every for each in (watcher.schedule, watcher.light_schedule)]
    return {"full": steps.full, "light": steps.light, "thinned": thinned}


@contextmanager
def _lines() -> Iterator[list[str]]:
    """What bpkit logs meanwhile, at warning or above."""
    lines: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("bpkit")
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
