"""Two processes that train together, by `torchrun` on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.cpu,
    pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo"),
]

SCRIPT = """
import copy, json, torch
import bpkit
from torch import distributed, nn
from torch.nn.functional import mse_loss
from torch.nn.parallel import DistributedDataParallel
torch.manual_seed(0)
torch.set_num_threads(1)
distributed.init_process_group("gloo")
rank = distributed.get_rank()
bare = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
x = torch.randn(48, 4)
y = x[:, :1]


from bpkit.diagnostics import Diagnostic
from bpkit.diagnostics.instruments import AccumulatedNorm, GradientNorm

class Probing(Diagnostic):
    needs = (GradientNorm, AccumulatedNorm)
    samples = []
    def attach(self, watcher):
        watcher.schedule.budget = float("inf")
    def observe(self, sample):
        self.samples.append([sample[GradientNorm], sample[AccumulatedNorm]])
        return []

def norms(model):
    return [p.grad.norm().item() for p in model.parameters()]

alone = copy.deepcopy(bare)
by_hand, plain = [], torch.optim.SGD(alone.parameters(), lr=0.1)
for step in range(6):
    for part in range(2):  # of each rank
        rows = slice(8 * step + 4 * part, 8 * step + 4 * part + 4)
        (mse_loss(alone(x[rows]), y[rows]) / 2).backward()
    before = norms(alone)
    nn.utils.clip_grad_norm_(alone.parameters(), 0.1)
    by_hand.append([norms(alone), before])
    plain.step()
    plain.zero_grad()

model = DistributedDataParallel(bare)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
with bpkit.watch(model, optimizer, logdir="logs", diagnostics=[Probing()], every=1) as watcher:
    for step in range(6):
        for micro in range(2):  # each rank's four rows in two pieces, the first of them not reduced
            rows = slice(8 * step + 4 * rank + 2 * micro, 8 * step + 4 * rank + 2 * micro + 2)
            model.require_backward_grad_sync = micro == 1
            (mse_loss(model(x[rows]), y[rows]) / 2).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad()
with open(f"rank{rank}.json", "w") as file:
    json.dump([Probing.samples, by_hand], file)
distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where it ran, once for all tests: under `bpkit watch`, and with a watch of its own beside."""
    where = tmp_path_factory.mktemp("ranks")
    (where / "train.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = ["--no-python", sys.executable, "-m", "bpkit", "watch", "train.py"]
    with (where / "stderr").open("w") as errors:
        done = subprocess.run(
            [*launcher, *command], cwd=where, env=environment, stderr=errors, timeout=240, check=False
        )
    assert done.returncode == 0, (where / "stderr").read_text()
    return where


def numbers(held: Any) -> list[float]:
    return [value for step in held for kind in step for value in kind]


def test_norms_are_those_of_the_whole_batch_by_hand(ran):
    for rank in range(2):
        seen, by_hand = json.loads((ran / f"rank{rank}.json").read_text())
        assert numbers(seen) == pytest.approx(numbers(by_hand), rel=1e-4)


def test_the_first_rank_writes(ran):
    assert len(list((ran / "logs").glob("events*"))) == 1
    assert sorted(each.parent.name for each in (ran / "runs").rglob("events*")) == ["model", "train-1"]


def test_bpkit_watch_reports_once(ran):
    errors = (ran / "stderr").read_text()
    assert (
        errors.count("healthy: nothing found in 6 steps") == 2
    )  # of the twin trained by hand, and of the model
    assert errors.count("tensorboard --logdir runs/train-1") == 1
