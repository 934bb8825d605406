from __future__ import annotations

import math
import struct
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from bpkit.core.errors import BpkitError
from bpkit.tensorboard import Writer
from bpkit.tensorboard.reader import Run, runs
from bpkit.tensorboard.record import ABSENT, BINS, FINDINGS, HISTOGRAMS, LAYERS, Layout, Verdicts
from bpkit.tensorboard.thinned import Thinned

LAYOUT = Layout(("first", "second"), ("Linear", "Linear"), ("gradient norm", "gain"), "Net")


def sample(
    writer: Writer, step: int, value: float = 1.0, *, tag: str = LAYERS, layout: Layout = LAYOUT
) -> None:
    """One tensor whose first cell is `value`."""
    values = np.ones((len(layout.layers), len(layout.columns)))
    values[0, 0] = value
    writer.add_tensor(tag, values, step, content=layout.to_json())


def only(root: Path) -> Run:
    (run,) = runs(root)
    return run


def event_file(place: Path) -> Path:
    (path,) = place.glob("*tfevents*")
    return path


def bodies(held: bytearray) -> list[slice]:
    """Where the records of an event file are: its version, then one a step."""
    found, place = [], 0
    while place < len(held):
        (length,) = struct.unpack_from("<Q", held, place)
        found.append(slice(place + 12, place + 12 + length))
        place += 12 + length + 4
        if length == 0 or length > len(held):
            break
    return found


def test_what_a_watch_wrote_is_read_back(tmp_path: Path) -> None:
    bins = Layout(LAYOUT.layers, LAYOUT.classes, BINS, "Net")
    verdicts = Verdicts(3, [{"kind": "dead"}], seconds=0.5, share=0.01, samples=3, finished=True)
    with Writer(tmp_path) as writer:
        for step, value in ((1, math.nan), (2, ABSENT), (3, math.inf)):
            sample(writer, step, value)
            sample(writer, step, step, tag=HISTOGRAMS, layout=bins)
            writer.add_scalar("loss/train", 1 / step, step)
        writer.add_scalar("loss/validation", math.nan, 3)
        writer.add_record(FINDINGS, Verdicts(1).to_json(), 1)
        writer.add_record(FINDINGS, verdicts.to_json(), 3)
    run = only(tmp_path)
    assert (run.name, run.step, run.sampled, run.finished) == (".", 3, 3, True)
    assert run.verdicts == verdicts
    (series,) = run.series
    assert series.layout == LAYOUT
    norms = series.column("gradient norm")
    assert norms is not None
    assert [step for step, _ in norms] == [1, 2, 3]
    np.testing.assert_array_equal(
        [row for _, row in norms], [[math.nan, 1], [np.float32(ABSENT), 1], [math.inf, 1]]
    )
    assert series.column("curvature") is None
    (histograms,) = run.histograms
    assert histograms.layout.columns == BINS
    assert histograms.samples.last[1][0, 0] == 3
    assert [value for _, value in run.losses["train"]] == pytest.approx([1, 1 / 2, 1 / 3])
    assert math.isnan(run.losses["validation"].last[1])


def test_each_directory_is_a_run(tmp_path: Path) -> None:
    for name, steps in (("b", 2), ("a/deep", 1)):
        with Writer(tmp_path / name) as writer:
            for step in range(1, steps + 1):
                sample(writer, step)
    assert [(run.name, run.step) for run in runs(tmp_path)] == [("a/deep", 1), ("b", 2)]
    assert not any(run.finished for run in runs(tmp_path))


def test_layers_that_change_are_series_of_their_own(tmp_path: Path) -> None:
    grown = Layout((*LAYOUT.layers, "third"), ("Linear",) * 3, LAYOUT.columns, "Net")
    with Writer(tmp_path) as writer:
        sample(writer, 1)
        sample(writer, 2, tag=f"{LAYERS}/2", layout=grown)
        sample(writer, 3, tag=f"{LAYERS}/2", layout=grown)
    assert [(each.layout, each.samples.count) for each in only(tmp_path).series] == [(LAYOUT, 1), (grown, 2)]


@pytest.mark.parametrize("lost", [1, 10, 200])
def test_a_record_that_is_half_written_is_left_out(tmp_path: Path, lost: int) -> None:
    with Writer(tmp_path) as writer:
        for step in (1, 2, 3):
            sample(writer, step)
            writer.add_text("filling", "x" * 300, step)  # the cut is within the last record
    path = event_file(tmp_path)
    path.write_bytes(path.read_bytes()[:-lost])
    assert [step for step, _ in only(tmp_path).series[0].samples] == [1, 2]


@pytest.mark.parametrize("tail", [bytes(4096), b"\xff" * 4096])
def test_what_follows_a_damaged_length_is_not_guessed_at(tmp_path: Path, tail: bytes) -> None:
    with Writer(tmp_path) as writer:
        for step in (1, 2, 3):
            sample(writer, step)
    path = event_file(tmp_path)
    held = bytearray(path.read_bytes() + tail)  # what a power failure leaves
    path.write_bytes(held)
    assert only(tmp_path).step == 3
    held[bodies(held)[2].start - 1] ^= 1  # the checksum of step 2's length
    path.write_bytes(held)
    assert only(tmp_path).step == 1


def test_a_record_that_cannot_be_decoded_is_passed_over(tmp_path: Path) -> None:
    with Writer(tmp_path) as writer:
        for step in (1, 2, 3):
            sample(writer, step)
    path = event_file(tmp_path)
    held = bytearray(path.read_bytes())
    body = bodies(held)[2]
    held[body] = b"\xff" * (body.stop - body.start)
    path.write_bytes(held)
    assert [step for step, _ in only(tmp_path).series[0].samples] == [1, 3]


def test_a_run_that_was_resumed_goes_on_where_its_checkpoint_was(tmp_path: Path) -> None:
    for name, steps, value in (("1", range(1, 7), 1.0), ("2", range(4, 9), 2.0)):
        with Writer(tmp_path / name) as writer:
            for step in steps:
                sample(writer, step, value)
                writer.add_scalar("loss/train", value, step)
            if name == "1":
                writer.add_record(FINDINGS, Verdicts(6, finished=True).to_json(), 6)
        path = event_file(tmp_path / name)
        path.rename(tmp_path / f"events.out.tfevents.{name}")
    (run,) = [each for each in runs(tmp_path) if each.watched]
    expected = [(1, 1.0), (2, 1.0), (3, 1.0), *((step, 2.0) for step in range(4, 9))]
    assert [(step, values[0, 0]) for step, values in run.series[0].samples] == expected
    assert list(run.losses["train"]) == expected
    assert not run.finished  # the first part was


def test_tensors_whose_layout_was_lost_mean_nothing(tmp_path: Path) -> None:
    with Writer(tmp_path) as writer:
        writer.add_tensor(LAYERS, [[1.0, 2.0]], 1)
        writer.add_tensor("loss/train", [1.0, 2.0], 1)  # somebody else's
    run = only(tmp_path)
    assert (run.watched, run.series, run.losses) == (False, [], {})
    assert run.tags == {LAYERS, "loss/train"}


@pytest.mark.parametrize("tag", [LAYERS, FINDINGS])
def test_a_later_format_is_one_line(tmp_path: Path, tag: str) -> None:
    with Writer(tmp_path) as writer:
        if tag == LAYERS:
            writer.add_tensor(LAYERS, [[1.0]], 1, content='{"version": 2}')
        else:
            writer.add_record(FINDINGS, '{"version": 2}', 1)
    with pytest.raises(
        BpkitError, match=r"tfevents.*written by a later bpkit \(format 2, this one reads 1\)"
    ):
        list(runs(tmp_path))


@pytest.mark.parametrize("count", [1, 5, 8, 9, 100, 1001])
def test_a_long_series_is_thinned_evenly_and_keeps_its_ends(count: int) -> None:
    thinned: Thinned[int] = Thinned(8)
    for step in range(1, count + 1):
        thinned.add(step, -step)
    held = list(thinned)
    assert held[0] == (1, -1)
    assert held[-1] == thinned.last == (count, -count)
    assert min(count, 5) <= len(held) == len(thinned) <= 9
    assert len({after[0] - before[0] for before, after in pairwise(held[:-1])}) <= 1
    assert thinned.count == count


def test_a_series_that_goes_back_to_its_start_is_empty_before() -> None:
    thinned: Thinned[str] = Thinned(2)
    for step in range(1, 10):
        thinned.add(step, "old")
    thinned.add(1, "new")
    assert list(thinned) == [(1, "new")]
    assert thinned.count == 1


def test_an_empty_series_has_no_last() -> None:
    with pytest.raises(IndexError):
        _ = Thinned[int]().last
