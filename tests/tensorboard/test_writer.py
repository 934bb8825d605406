from __future__ import annotations

import errno
import logging
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing import plugin_event_accumulator as accumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.util import tensor_util

from bpkit.core.errors import BpkitError
from bpkit.tensorboard import Writer


def written(logdir: Path) -> accumulator.EventAccumulator:
    events = accumulator.EventAccumulator(str(logdir))
    events.Reload()
    return events


def test_what_is_written_is_what_tensorboard_reads(tmp_path: Path) -> None:
    with Writer(tmp_path / "new" / "run") as writer:
        for step in (1, 2):
            writer.add_scalar("loss", 0.5 / step, step)
            writer.add_tensor("norms", [[1.0, 2.0], [3.0, float(step)]], step, content='{"rows": 2}')
        writer.add_text("verdict", "**bad**", 2)
    events = written(tmp_path / "new" / "run")

    def arrays(tag: str) -> list[object]:
        return [tensor_util.make_ndarray(each.tensor_proto) for each in events.Tensors(tag)]

    assert [each.step for each in events.Tensors("loss")] == [1, 2]
    assert arrays("loss") == [0.5, 0.25]
    np.testing.assert_array_equal(arrays("norms")[1], [[1, 2], [3, 2]])
    assert arrays("verdict") == [np.array([b"**bad**"], dtype=object)]
    for tag, plugin in (("norms", "bpkit"), ("verdict", "text"), ("loss", "scalars")):
        assert events.SummaryMetadata(tag).plugin_data.plugin_name == plugin
    assert events.SummaryMetadata("norms").plugin_data.content == b'{"rows": 2}'


def test_values_of_one_step_are_one_record(tmp_path: Path) -> None:
    with Writer(tmp_path) as writer:
        for step in range(3):
            for tag in "abcd":
                writer.add_scalar(tag, 1.0, step)
    (file,) = tmp_path.iterdir()
    records = [event for event in EventFileLoader(str(file)).Load() if event.summary.value]
    assert [len(event.summary.value) for event in records] == [4, 4, 4]


def test_flush_puts_everything_on_disk(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    writer.add_scalar("loss", 1.0, 1)
    writer.flush()
    assert "loss" in written(tmp_path).Tags()["tensors"]
    writer.close()
    writer.close()
    writer.add_scalar("loss", 1.0, 2)  # dropped
    writer.flush()
    assert len(written(tmp_path).Tensors("loss")) == 1


def test_a_logdir_that_is_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("kept")
    with pytest.raises(BpkitError, match=r"cannot write to logdir .*file.*name a directory"):
        Writer(path)
    assert path.read_text() == "kept"


def test_a_full_disk_ends_the_writing_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    writer = Writer(tmp_path)

    def full(event: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer._file, "add_event", full)
    with caplog.at_level(logging.WARNING, "bpkit"):
        for step in range(5):
            writer.add_scalar("loss", 1.0, step)
        writer.close()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "No space left on device" in caplog.text
