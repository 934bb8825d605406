"""Bytes kept for backward."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bpkit.core.graph import nodes
from bpkit.verification.case import Case, Forward, call
from bpkit.verification.check import Check


def run(case: Case) -> str | None:
    """Unique storages saved or left on a ctx, parameters apart, within the budget; nothing on a ctx."""
    case.need_gradient()
    kept, strays = _kept(case, case.forward)
    if strays:
        raise case.advise(f"{strays[0]} is a tensor kept on ctx: torch can neither free nor check it")
    if case.budget is not None:
        allowed, source = case.budget(), "the budget"
    elif case.reference is not None:
        allowed, source = _kept(case, case.reference)[0], "the reference"
    else:
        return f"{kept} bytes"
    if kept > allowed:
        raise case.advise(f"keeps {kept} bytes for backward, {source} {allowed}")
    return f"{kept} of {allowed} bytes"


def _kept(case: Case, forward: Forward) -> tuple[int, list[str]]:
    """Bytes of the storages kept for backward, and the names of attributes of ctx that hold tensors."""
    values = case.fresh()
    storages: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    held: list[Tensor] = []  # a storage freed during the call would lend its address to the next

    def pack(tensor: Tensor) -> Tensor:
        held.append(tensor)
        return count(tensor)

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = call(forward, values)
    strays = []
    for node in nodes(outputs):
        for name, value in getattr(node, "__dict__", {}).items():
            for tensor in _tensors(value):
                count(tensor)
                strays.append(f"{type(node).__name__.removesuffix('Backward')}'s ctx.{name}")
    parameters = {values[position].untyped_storage().data_ptr() for position in case.parameters}
    return sum(size for pointer, size in storages.items() if pointer not in parameters), strays


def _tensors(value: Any, depth: int = 4) -> Iterator[Tensor]:
    """Tensors reachable from an attribute of ctx, parameters and modules apart."""
    if isinstance(value, nn.Parameter | nn.Module) or depth == 0:
        return
    inside: list[Any] = []
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        inside = list(value.values())
    elif isinstance(value, tuple | list | set | frozenset):
        inside = list(value)
    elif isinstance(value, functools.partial):
        inside = [*value.args, *value.keywords.values()]
    elif isinstance(value, types.FunctionType):
        inside = [cell.cell_contents for cell in value.__closure__ or () if cell.cell_contents is not value]
    elif not isinstance(value, type | types.ModuleType):
        inside = list(getattr(value, "__dict__", {}).values())
    for each in inside:
        yield from _tensors(each, depth - 1)


CHECK = Check(
    name="memory",
    harm="Activations kept for backward are what training runs out of memory on; a tensor on ctx also "
    "escapes checkpointing, offloading and double backward.",
    remedy="Pass to save_for_backward what the gradients that are needed take, and recompute what is cheap.",
    run=run,
    subject=Case,
)
