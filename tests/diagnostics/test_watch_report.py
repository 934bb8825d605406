"""What a watch says and writes: findings merged, layers in one tensor, the picture by depth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.util import tensor_util
from torch import nn

import bpkit
from bpkit.diagnostics import Diagnostic, Finding, gradient_profile
from bpkit.diagnostics.gradient_norm import GradientNorms
from bpkit.diagnostics.instruments import GradientNorm
from bpkit.diagnostics.sample import Sample
from bpkit.tensorboard import record
from tests.diagnostics.watched import Probing, network, take


class Reports(Diagnostic):
    """Warns at samples 2 and 3, is graver at 4, and breaks at 6."""

    count = 0

    def observe(self, sample: Sample) -> list[Finding]:
        self.count += 1
        if self.count > 5:
            raise ZeroDivisionError("oops")
        if self.count < 2:
            return []
        severity: Any = "critical" if self.count >= 4 else "warning"
        where, step = ("a`b", "<script>"), sample.step
        return [
            Finding(
                kind="odd", severity=severity, layers=where, step=step, last_step=step, evidence={"n": step}
            )
        ]


def test_findings_merge_and_a_broken_diagnostic_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with bpkit.watch(model, optimizer, logdir=tmp_path, diagnostics=[Reports(), GradientNorms()]) as watcher:
        take(model, optimizer, torch.randn(2, 6), steps=8)
    (finding,) = watcher.findings
    assert (finding.severity, finding.step, finding.last_step) == ("critical", 2, 5)
    assert finding.evidence == {"n": 5}
    assert "steps 2 to 5" in watcher.summary()
    assert [record.getMessage().split(",")[0] for record in caplog.records] == [
        "bpkit: warning: odd in a`b",
        "bpkit: critical: odd in a`b",
        "bpkit: diagnostic Reports left out from step 6 on: ZeroDivisionError('oops')",
    ]
    events = EventAccumulator(str(tmp_path)).Reload()
    texts = [tensor_util.make_ndarray(each.tensor_proto)[0] for each in events.Tensors("bpkit/verdicts/odd")]
    assert len(texts) == 2
    assert b"`ab`, `<script>`" in texts[0]
    totals = events.Tensors("gradients/total after clipping")
    assert [each.step for each in totals] == list(range(1, 9))


def test_many_layers_are_one_tensor(tmp_path: Path) -> None:
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(70)))
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    with bpkit.watch(model, optimizer, logdir=tmp_path, diagnostics=["gradient_norm"]) as watcher:
        take(model, optimizer, torch.randn(2, 2))
    events = EventAccumulator(str(tmp_path)).Reload()
    assert len([tag for tag in events.Tags()["tensors"] if tag.startswith("gradients/")]) == 6
    (tensor,) = [tensor_util.make_ndarray(each.tensor_proto) for each in events.Tensors("bpkit/layers")]
    layout = record.Layout.from_json(events.SummaryMetadata("bpkit/layers").plugin_data.content)
    assert layout.layers == tuple(map(str, range(70)))
    assert tensor.shape == (70, len(layout.columns))
    assert layout.columns[0] == "gradient norm"
    (counts,) = [tensor_util.make_ndarray(each.tensor_proto) for each in events.Tensors("bpkit/histograms")]
    assert counts.sum(1).tolist() == [6.0] * 70  # every element of every layer in one bin
    # The log is float32.
    np.testing.assert_allclose(tensor[:, 0], list(watcher.sample.by_layer(GradientNorm).values()), rtol=1e-6)
    picture = gradient_profile(watcher.sample).splitlines()
    assert len(picture) == 36
    assert max(map(len, picture)) <= 80


def test_the_picture_shows_norms_on_a_log_scale() -> None:
    model, probing = network(), Probing()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    with bpkit.watch(model, optimizer, diagnostics=[probing]):
        take(model, optimizer, torch.randn(2, 6))
    caption, *bars = gradient_profile(probing.samples[0]).splitlines()
    assert "step 1" in caption
    norms = probing.samples[0].by_layer(GradientNorm)
    assert [bar.split()[0] for bar in bars] == ["0", "3", "5"]
    lengths = {name: bar.count("█") for name, bar in zip(norms, bars, strict=True)}
    assert sorted(norms, key=norms.__getitem__) == sorted(lengths, key=lengths.__getitem__)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchs_own_writer_takes_the_figures_of_many_layers(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(70)))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with SummaryWriter(str(tmp_path)) as writer, bpkit.watch(model, optimizer, writer=writer):
        take(model, optimizer, torch.ones(3, 2))
    events = EventAccumulator(str(tmp_path)).Reload()
    assert "bpkit/layers" in events.Tags()["tensors"]
