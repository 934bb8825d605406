"""What each of two processes runs for `test_sharded_by_fsdp2_on_two_processes`."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed import destroy_process_group, init_process_group
from torch.nn.utils.parametrizations import weight_norm

WORLD = 2


def run_on_two_processes(order: str, folder: Path) -> None:
    """Convert before or after sharding; an assertion that fails in either process is raised here."""
    mp.spawn(_worker, args=(order, f"file://{folder}/store"), nprocs=WORLD)


def _worker(rank: int, order: str, store: str) -> None:
    torch.set_num_threads(1)
    init_process_group("gloo", init_method=store, rank=rank, world_size=WORLD)
    try:
        _check(order)
    finally:
        destroy_process_group()


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8),
        nn.LayerNorm(8),
        nn.GELU(),
        nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=True)),
        weight_norm(nn.Linear(8, 2)),
    ).double()


def _gradients(model: nn.Module) -> list[Tensor]:
    torch.manual_seed(1)
    model.zero_grad()
    model(torch.randn(4, 6, dtype=torch.float64)).square().mean().backward()
    return [
        p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad.clone() for p in model.parameters()
    ]


def _check(order: str) -> None:
    from torch.distributed.fsdp import fully_shard

    import bpkit
    from bpkit.core.module import Handwritten

    expected = _gradients(_model())
    model = _model()
    if order == "before":
        bpkit.convert(model)
    fully_shard(model[3])
    fully_shard(model[4])  # a class that FSDP makes over one that the parametrisation made
    fully_shard(model)
    if order == "after":
        assert bpkit.convert(model) is model
    assert all(isinstance(model[i], Handwritten) for i in (0, 1, 2, 4))
    assert isinstance(model[3][0], Handwritten)
    torch.testing.assert_close(_gradients(model), expected)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0)
    optimizer.step()
    bpkit.revert(model)
    assert not any(isinstance(each, Handwritten) for each in model.modules())
    torch.testing.assert_close(_gradients(model), expected)
