"""`bpkit bench trainer`: the Trainer, with TensorBoard and its watch, against a bare loop."""

from __future__ import annotations

import tempfile
import time

import torch
from torch import nn

from bpkit.train import Trainer

MOST_TIMES = 1.3
STEPS = 400


def measure(rounds: int = 15) -> dict[str, float]:
    """Median seconds a step of a 64-128-10 network at batch 64, `bare` and `trainer`, interleaved."""
    inputs, target = torch.randn(64 * 100, 64), torch.randint(10, (64 * 100,))
    bare_model, model = _network(), _network()
    bare_optimizer = torch.optim.AdamW(bare_model.parameters())
    times: dict[str, list[float]] = {"bare": [], "trainer": []}
    with tempfile.TemporaryDirectory() as logdir:
        trainer = Trainer(
            model, nn.CrossEntropyLoss(), torch.optim.AdamW, logdir=logdir, progress=False, device="cpu"
        )
        for number in range(1, rounds + 1):
            start = time.perf_counter()
            _bare(bare_model, bare_optimizer, inputs, target)
            middle = time.perf_counter()
            trainer.fit((inputs, target), steps=STEPS * number)
            end = time.perf_counter()
            times["bare"].append((middle - start) / STEPS)
            times["trainer"].append((end - middle) / STEPS)
    return {name: sorted(each)[len(each) // 2] for name, each in times.items()}


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def _bare(
    model: nn.Module, optimizer: torch.optim.Optimizer, inputs: torch.Tensor, target: torch.Tensor
) -> None:
    loss = nn.CrossEntropyLoss()
    for _ in range(STEPS // 100):
        for index in torch.randperm(len(inputs)).split(64):
            optimizer.zero_grad()
            loss(model(inputs[index]), target[index]).backward()
            optimizer.step()
