"""What torch's samples and `verify` do not reach: a group of processes, and a gradient torch has wrong."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import torch
import torch.multiprocessing
from torch import nn
from torch.nn import functional as F

import bpkit
import bpkit.nn
from bpkit.layers.syncbatchnorm import sync_batch_norm


def _data() -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    x = torch.randn(7, 3, 2, 2, dtype=torch.float64) + 5
    return x, torch.randn(3, dtype=torch.float64), torch.randn(3, dtype=torch.float64), torch.randn_like(x)


def _second(output: torch.Tensor, inputs: tuple[torch.Tensor, ...], delta: torch.Tensor) -> list[Any]:
    """First and second derivatives, the latter of Σ (∂L/∂x)²."""
    first = torch.autograd.grad(output, inputs, delta, create_graph=True)
    second = torch.autograd.grad(first[0].square().sum(), inputs, allow_unused=True)
    return [*(each.detach() for each in first), *second[:2]]


def _worker(rank: int, port: int, sizes: tuple[int, ...], queue: Any) -> None:
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    x, weight, bias, delta = _data()
    mine = slice(0, sizes[0]) if rank == 0 else slice(sizes[0], None)
    leaves = tuple(each.clone().requires_grad_() for each in (x[mine], weight, bias))
    running = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    output = sync_batch_norm(*leaves, *running, 1e-5, 0.3)
    found = [output.detach(), *_second(output, leaves, delta[mine]), *running]
    module = bpkit.nn.SyncBatchNorm(3).double()
    with pytest.raises(ValueError, match="expected input tensor to be on GPU"):
        module(x)
    queue.put((rank, [each.numpy() for each in found]))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("sizes", [(3, 4), (7, 0)], ids=["uneven", "one empty"])
def test_two_processes_are_one_batch(sizes: tuple[int, int]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    workers = [context.Process(target=_worker, args=(rank, port, sizes, queue)) for rank in range(2)]
    for worker in workers:
        worker.start()
    found = dict(queue.get() for _ in workers)
    for worker in workers:
        worker.join()
    parts = [[torch.from_numpy(each) for each in found[rank]] for rank in range(2)]

    x, weight, bias, delta = _data()
    leaves = tuple(each.requires_grad_() for each in (x, weight, bias))
    running = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    output = nn.functional.batch_norm(x, *running, weight, bias, True, 0.3)
    expected = [output.detach(), *_second(output, leaves, delta)]
    # output and x are divided among the processes; a weight's gradient is the sum of theirs.
    together = [torch.cat, torch.cat, _add, _add, torch.cat, _add]
    for join, ours, theirs in zip(together, zip(*parts, strict=True), expected, strict=False):
        torch.testing.assert_close(join(ours), theirs, rtol=1e-9, atol=1e-10)
    for part in parts:
        torch.testing.assert_close(part[-2:], list(running))


def _add(parts: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return parts[0] + parts[1]


def test_batch_norms_become_handwritten_sync_batch_norms() -> None:
    model = bpkit.convert(nn.Sequential(nn.BatchNorm1d(3), nn.Sequential(nn.BatchNorm2d(2))))
    ours = bpkit.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert type(ours[0]) is type(ours[1][0]) is bpkit.nn.SyncBatchNorm
    model = bpkit.convert(nn.Sequential(nn.BatchNorm1d(3)))
    theirs = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert type(theirs[0]) is nn.SyncBatchNorm
    assert type(bpkit.convert(theirs)[0]) is bpkit.nn.SyncBatchNorm


@pytest.mark.parametrize("size", [1, 3, 4, 5])
@pytest.mark.parametrize("channels", [1, 2, 3, 6])
def test_cross_map_normalisation_has_torchs_values_and_their_gradient(size: int, channels: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, channels, 2, 1, dtype=torch.float64, requires_grad=True)
    settings = (size, 0.7, 0.6, 1.3)
    ours = bpkit.nn.CrossMapLRN2d(*settings)
    torch.testing.assert_close(ours(x), nn.CrossMapLRN2d(*settings)(x))
    assert torch.autograd.gradcheck(ours, (x,))
    assert torch.autograd.gradgradcheck(ours, (x,))


def test_a_weight_of_another_shape_is_refused_and_not_detached() -> None:
    """Torch takes it for its number of elements alone; inside the mode it is torch's own that runs."""
    x, weight = torch.randn(4, 3, requires_grad=True), torch.rand(1, 3)
    given = (x, torch.zeros(3), torch.ones(3), weight)
    with pytest.raises(NotImplementedError, match="leave the module to torch"):
        bpkit.nn.functional.batch_norm(*given, training=True)
    with bpkit.handwritten():
        assert F.batch_norm(*given, training=True).requires_grad
