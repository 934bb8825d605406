"""Interleaved timing: contenders take turns, so that what disturbs the machine disturbs them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch


def interleave(contenders: Mapping[str, Callable[[], object]], seconds: float = 1.0) -> dict[str, float]:
    """Median seconds of one call of each contender.

    Args:
        contenders: by name, what to time; each has to do the same work.
        seconds: about how long to measure in all, after one untimed call of each.

    Every round times each contender once, over as many calls as fill a millisecond; there are at
    least seven rounds.
    """
    _settle_allocator()
    first = {name: _timed(call, 1, warm=True) for name, call in contenders.items()}
    calls = max(1, round(1e-3 / max(min(first.values()), 1e-7)))
    rounds = max(7, round(seconds / (calls * sum(first.values()))))
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(min(rounds, 2000)):
        for name, call in contenders.items():
            times[name].append(_timed(call, calls))
    return {name: statistics.median(each) for name, each in times.items()}


def _settle_allocator() -> None:
    """Bring the C library's allocator to where a process that has trained on large tensors has it.

    Until a large block has been freed glibc gives freed megabytes back to the system, and what is timed is
    the faults of getting them again: a step of LayerNorm at 1024 x 1024 took 7 ms so, and 3.5 afterwards.
    """
    torch.empty(31 << 20, dtype=torch.uint8)  # 32 MiB are beyond what it adapts to


def _timed(call: Callable[[], object], calls: int, *, warm: bool = False) -> float:
    """Seconds a call takes; `warm` makes one untimed call before (compiling, allocating)."""
    if warm:
        call()
    _synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    _synchronize()
    return (time.perf_counter() - start) / calls


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def saved_bytes(module: torch.nn.Module, inputs: tuple[Any, ...]) -> int:
    """Bytes that `module(*inputs)` keeps for backward: see `saved_in`."""
    return saved_in(module, lambda: module(*inputs))


def saved_in(module: torch.nn.Module, run: Callable[[], object]) -> int:
    """Bytes that `run`, a forward of `module`, keeps for backward: unique storages, parameters apart."""
    owned = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = run()
    del output
    return sum(kept.values())
