"""What the heat map is sent: every kind of value told apart, and no more cells than it has room for."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bpkit.tensorboard import Writer, answers
from bpkit.tensorboard.cells import cells
from bpkit.tensorboard.history import Part, merged
from bpkit.tensorboard.record import ABSENT, LAYERS
from tests.tensorboard.runs import layout, run
from tests.tensorboard.server import Tab, sample


def test_a_map_keeps_nan_infinity_zero_and_absent_apart(tmp_path: Path) -> None:
    samples = {1: sample(1, float("nan"), ABSENT, 0), 2: sample(2, float("inf"), -float("inf"), 4)}
    run(tmp_path / "a", ["0", "1", "2", "3"], samples)
    answer = Tab(tmp_path).map("a")
    expected = np.array([[1, 2], [np.nan, np.inf], [ABSENT, -np.inf], [0, 4]], np.float32)
    np.testing.assert_array_equal(answer["cells"], expected)
    assert answer["layers"] == ["0", "1", "2", "3"]
    assert answer["steps"] == [[1, 1], [2, 2]]
    assert answer["range"] == [1, 4]
    assert np.float32(answer["absent"]) == np.float32(ABSENT)


def test_a_statistic_that_was_not_measured_is_blank(tmp_path: Path) -> None:
    run(tmp_path / "a", ["0"], {1: sample(1)})
    answer = Tab(tmp_path).map("a", "noise")
    assert not answer["measured"]
    assert answer["range"] is None
    assert (answer["cells"] == np.float32(ABSENT)).all()


def test_a_statistic_that_is_zero_everywhere_was_measured(tmp_path: Path) -> None:
    run(tmp_path / "a", ["0", "1"], {1: sample(0, ABSENT)})
    answer = Tab(tmp_path).map("a")
    assert answer["measured"]
    assert answer["range"] is None
    assert answer["cells"].tolist() == [[0]]


def test_layers_that_never_have_the_statistic_are_aside(tmp_path: Path) -> None:
    samples = {1: sample(ABSENT, 1, ABSENT, ABSENT), 2: sample(ABSENT, 2, ABSENT, 3)}
    run(tmp_path / "a", ["flatten", "linear", "relu", "head"], samples)
    answer = Tab(tmp_path).map("a")
    assert answer["layers"] == ["linear", "head"]
    assert answer["aside"] == {"flatten": 0, "relu": 0}
    assert answer["cells"].tolist() == np.float32([[1, 2], [ABSENT, 3]]).tolist()


def test_a_long_and_deep_run_is_thinned_and_loses_no_nan(tmp_path: Path) -> None:
    layers, steps = 50, 90
    values = np.full((steps, layers, 2), 10.0)
    values[::2] = 1000.0  # neighbours whose geometric mean is 100
    values[70, 33] = np.nan
    values[:, :, 1] = 0.0
    values[10, 7, 1] = 0.9
    run(tmp_path / "a", [f"l{i}" for i in range(layers)], {i: values[i] for i in range(steps)})
    answer = Tab(tmp_path).map("a", rows=10, columns=9)
    assert answer["rows"] == list(range(0, 51, 5))
    assert answer["steps"] == [[start, start + 9] for start in range(0, 90, 10)]
    assert answer["samples"] == steps
    assert np.argwhere(np.isnan(answer["cells"])).tolist() == [[6, 7]]
    np.testing.assert_allclose(np.delete(answer["cells"].ravel(), 6 * 9 + 7), 100, rtol=1e-5)
    dead = Tab(tmp_path).map("a", "dead", rows=10, columns=9)
    assert dead["scale"] == "share"
    assert dead["cells"].max() == np.float32(0.9)  # not averaged away
    assert np.argwhere(dead["cells"]).tolist() == [[1, 1]]


NAN, INF = float("nan"), float("inf")
MIXED = [  # two layers that share a row, and what it shows
    ([NAN, INF], NAN),
    ([INF, 1.0], INF),
    ([-INF, ABSENT], INF),
    ([0.0, 4.0], 4.0),
    ([0.0, ABSENT], 0.0),
    ([ABSENT, 5.0], 5.0),
    ([ABSENT, ABSENT], ABSENT),
]


def test_what_values_of_different_kinds_become_in_one_cell() -> None:
    values = np.array([[value] for pair, _ in MIXED for value in pair], np.float32)
    found = cells("gain", values, rows=len(MIXED), columns=1)
    expected = np.array([[value] for _, value in MIXED], np.float32)
    np.testing.assert_allclose(found.values, expected, rtol=1e-6)
    assert found.range == (4, 5)


def test_a_mean_of_both_signs_is_no_geometric_one() -> None:
    found = cells("cosine", np.float32([[-1.0, 0.5], [ABSENT, 0.0]]), rows=1, columns=2)
    assert found.values.tolist() == [[-1.0, 0.25]]


def test_no_answer_is_larger_than_its_bound() -> None:
    plan = layout([f"l{i}" for i in range(900)], ["gain"])
    history = merged([Part(plan, range(500), np.ones((500, 900, 1), np.float32))])
    answer, found = answers.heat_map(history, "gain", rows=10**9, columns=10**9)
    assert (len(answer["rows"]), len(answer["steps"])) == (401, 400)
    assert found.shape == (400, 400)


class Seen(np.ndarray[Any, Any]):
    """An array that tells what was taken of it."""

    taken: ClassVar[list[Any]] = []

    def __getitem__(self, place: Any) -> Any:
        self.taken.append(place)
        return np.asarray(self)[place]

    def __array_finalize__(self, whole: Any) -> None:
        assert whole is None or whole.size == self.size, "a part was taken in another way"


def test_of_all_statistics_only_the_one_that_is_asked_for_is_touched() -> None:
    columns = [f"statistic {i}" for i in range(20)]
    samples = [np.full((3, 20), step, np.float32).view(Seen) for step in range(4)]
    history = merged([Part(layout(["a", "b", "c"], columns), range(4), samples)])
    _, found = answers.heat_map(history, "statistic 7", rows=10, columns=10)
    assert found.tolist() == [[0, 1, 2, 3]] * 3
    assert Seen.taken == [(slice(None), 7)] * 4


def test_the_scale_follows_the_values(tmp_path: Path) -> None:
    run(tmp_path / "a", ["0"], {1: [[-1.0, 0.5]], 2: [[2.0, 0.5]]})
    tab = Tab(tmp_path)
    assert tab.map("a")["scale"] == "signed"
    assert tab.map("a", "dead")["scale"] == "share"


def test_layers_are_found_by_a_part_of_their_name(tmp_path: Path) -> None:
    run(tmp_path / "a", ["conv.0", "head", "Conv.1"], {1: sample(1, 2, 3)})
    answer = Tab(tmp_path).map("a", match="conv")
    assert answer["layers"] == ["conv.0", "Conv.1"]
    assert answer["cells"].tolist() == [[1], [3]]
    assert Tab(tmp_path).map("a", match="none")["cells"].size == 0


def test_layouts_that_follow_each_other_are_one_map(tmp_path: Path) -> None:
    with Writer(tmp_path / "a") as writer:
        early, late = layout(["in", "old", "out"], ["gain"]), layout(["in", "new", "out"], ["gain", "noise"])
        writer.add_tensor(LAYERS, [[1], [2], [3]], 1, content=early.to_json())
        writer.add_tensor(f"{LAYERS}/2", [[4, 40], [5, 50], [6, 60]], 2, content=late.to_json())
    answer = Tab(tmp_path).map("a", "gain")
    assert answer["layers"] == ["in", "old", "new", "out"]
    assert answer["cells"].tolist() == np.float32([[1, 4], [2, ABSENT], [ABSENT, 5], [3, 6]]).tolist()
