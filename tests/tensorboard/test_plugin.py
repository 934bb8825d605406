"""What the tab's server answers, over event files and TensorBoard's own data provider."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider

from bpkit.tensorboard import Writer, source
from bpkit.tensorboard.plugin import GradientsPlugin
from bpkit.tensorboard.record import ABSENT, BINS, FINDINGS, HISTOGRAMS, LAYERS, Verdicts
from tests.tensorboard.runs import COLUMNS, finding, layout, run
from tests.tensorboard.server import Tab, sample

SCRIPT = "<script>alert(1)</script>"


def test_the_plugin_imports_no_torch() -> None:
    code = "import bpkit.tensorboard.plugin, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_tensorboard_finds_the_plugin() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    declared = project["entry-points"]["tensorboard_plugins"]["bpkit"]
    assert EntryPoint("bpkit", declared, "tensorboard_plugins").load() is GradientsPlugin


def test_runs_are_listed_and_an_empty_directory_has_none(tmp_path: Path) -> None:
    assert Tab(tmp_path).ask("/runs") == {"runs": []}
    run(tmp_path / "a", [SCRIPT, "b"], {1: sample(1, 2), 3: sample(3, 4)})
    with Writer(tmp_path / "others") as writer:
        writer.add_scalar("loss", 1.0, 1)
    (entry,) = Tab(tmp_path).ask("/runs")["runs"]
    assert (entry["name"], entry["step"], entry["layers"], entry["model"]) == ("a", 3, 2, "Net")
    assert entry["columns"] == ["gradient norm", "dead"]
    assert entry["problems"] == []


def test_a_layer_has_its_curves_and_its_histogram(tmp_path: Path) -> None:
    run(tmp_path / "a", ["0", SCRIPT], {1: [[1, 0], [float("nan"), ABSENT]], 5: [[2, 0.5], [3, 0.25]]})
    answer = Tab(tmp_path).ask("/layer", run="a", layer=SCRIPT)
    assert (answer["layer"], answer["class"], answer["steps"]) == (SCRIPT, "Linear", [1, 5])
    assert answer["curves"] == [
        {"name": "gradient norm", "scale": "log", "values": ["nan", 3.0]},
        {"name": "dead", "scale": "share", "values": [None, 0.25]},
    ]
    histogram = answer["histogram"]
    assert histogram["step"] == 5
    assert len(histogram["counts"]) == len(histogram["bins"])
    assert histogram["counts"][0] == len(histogram["bins"])  # the second row of a running count


def test_a_layer_without_parameters_has_no_histogram(tmp_path: Path) -> None:
    with Writer(tmp_path / "a") as writer:
        writer.add_tensor(LAYERS, [[1.0]], 1, content=layout(["relu"], ["gain"]).to_json())
        counts = np.full((1, len(BINS)), ABSENT)
        writer.add_tensor(HISTOGRAMS, counts, 1, content=layout(["relu"], BINS).to_json())
    assert Tab(tmp_path).ask("/layer", run="a", layer="relu")["histogram"] is None


def test_findings_come_gravest_first(tmp_path: Path) -> None:
    found = [finding("noise", ["0"], 1, 1, "info"), finding("dead", [SCRIPT], 2, 9, "critical")]
    run(tmp_path / "a", ["0", SCRIPT], {9: sample(1, 2)}, found)
    answer = Tab(tmp_path).ask("/findings", run="a")
    assert [each["kind"] for each in answer["findings"]] == ["dead", "noise"]
    assert answer["findings"][0] == {
        "kind": "dead",
        "severity": "critical",
        "layers": [SCRIPT],
        "where": SCRIPT,
        "step": 2,
        "last_step": 9,
        "since": "steps 2 to 9",
        "evidence": "slope -1.5",
        "advice": f"look at {SCRIPT}",
    }
    assert (answer["samples"], answer["share"], answer["finished"]) == (1, 0.02, False)


def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], int]]:
    """The tags that are read from now on, and how many samples of each."""
    read, asked = MultiplexerDataProvider.read_tensors, []

    def noted(provider: Any, *arguments: Any, **options: Any) -> Any:
        asked.append((list(options["run_tag_filter"].tags), options["downsample"]))
        return read(provider, *arguments, **options)

    monkeypatch.setattr(MultiplexerDataProvider, "read_tensors", noted)
    return asked


def test_a_run_is_read_again_only_when_it_has_grown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "a", ["0"], {1: sample(1)}, [])
    tab = Tab(tmp_path)
    asked = reads(monkeypatch)
    for _ in range(2):
        tab.map("a")
        tab.map("a", "dead")
        tab.ask("/findings", run="a")
        tab.ask("/verdicts")
    assert asked == [([LAYERS], 512), ([FINDINGS], 1)]
    (entry,) = tab.ask("/runs")["runs"]
    version, judged = entry["version"], entry["judged"]
    with Writer(tmp_path / "a") as writer:
        writer.add_tensor(LAYERS, sample(5), 2, content=layout(["0"]).to_json())
    tab.load()
    assert tab.map("a")["cells"].tolist() == [[1, 5]]
    (entry,) = tab.ask("/runs")["runs"]
    assert (entry["version"] != version, entry["judged"]) == (True, judged)
    tab.ask("/findings", run="a")
    assert asked[2:] == [([LAYERS], 512)]
    with Writer(tmp_path / "a") as writer:
        writer.add_record(FINDINGS, Verdicts(3).to_json(), 3)
    tab.load()
    tab.map("a")
    tab.ask("/findings", run="a")
    assert asked[3:] == [([FINDINGS], 1)]


def test_histograms_are_read_for_a_layer_alone_and_only_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "a", ["0"], {1: sample(1)})
    tab = Tab(tmp_path)
    asked = reads(monkeypatch)
    tab.map("a")
    assert asked == [([LAYERS], 512)]
    tab.ask("/layer", run="a", layer="0")
    assert asked[1:] == [([HISTOGRAMS], 1)]


def test_no_more_of_a_wide_run_is_read_than_the_page_can_wait_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 4 * 3 * len(COLUMNS)
    run(tmp_path / "a", ["0", "1", "2"], {step: sample(step, 1, 1) for step in range(100)})
    monkeypatch.setattr(source, "READ", 10 * size)
    answer = Tab(tmp_path).map("a")
    assert answer["samples"] == 10
    assert answer["steps"][-1] == [99, 99]
    monkeypatch.setattr(source, "READ", 1)
    assert Tab(tmp_path).map("a")["samples"] == 2  # whatever its width, a first and a last


def test_the_verdicts_on_all_runs_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [finding(kind, [SCRIPT], 1, 1, "warning") for kind in ("dead", "noise")]
    run(tmp_path / SCRIPT.replace("/", ""), [SCRIPT], {1: sample(1)}, found)
    run(tmp_path / "well", ["0"], {1: sample(1)}, [])
    run(tmp_path / "unjudged", ["0"], {1: sample(1)})
    tab = Tab(tmp_path)
    asked = reads(monkeypatch)
    assert tab.ask("/verdicts")["verdicts"] == [
        {"run": SCRIPT.replace("/", ""), "info": 0, "warning": 2, "critical": 0},
        {"run": "well", "info": 0, "warning": 0, "critical": 0},
    ]
    assert asked == [([FINDINGS], 1)]  # of all of them at once


LATER = json.dumps({"version": 99, "layers": ["0"], "classes": ["Linear"], "columns": ["gain"]})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (LATER, "later bpkit"),
        ("{", "Expecting"),
        ("[]", "not a JSON object"),
        ('{"version": 1}', "no layout"),
    ],
    ids=["later version", "no JSON", "another object", "empty"],
)
def test_metadata_that_cannot_be_read_is_left_out_and_said(tmp_path: Path, content: str, said: str) -> None:
    with Writer(tmp_path / "a") as writer:
        writer.add_tensor(LAYERS, [[1.0]], 1, content=layout(["0"], ["gain"]).to_json())
        writer.add_tensor(f"{LAYERS}/2", [[2.0]], 2, content=content)
    tab = Tab(tmp_path)
    (entry,) = tab.ask("/runs")["runs"]
    (problem,) = entry["problems"]
    assert said in problem
    assert tab.map("a", "gain")["cells"].tolist() == [[1]]


def test_samples_and_verdicts_of_another_kind_are_left_out_and_said(tmp_path: Path) -> None:
    with Writer(tmp_path / "a") as writer:
        writer.add_tensor(LAYERS, [[1.0]], 1, content=layout(["0"], ["gain"]).to_json())
        writer.add_tensor(LAYERS, [[1.0, 2.0]], 2)
        writer.add_record(FINDINGS, Verdicts(1, [{"kind": "odd"}]).to_json(), 2)
    tab = Tab(tmp_path)
    answer = tab.ask("/findings", run="a")
    assert not answer["watched"]
    (verdicts,) = answer["problems"]
    (samples,) = tab.map("a", "gain")["problems"]
    assert samples.startswith("1 samples of bpkit/layers are left out")
    assert verdicts.startswith("bpkit/findings is left out")
    assert tab.map("a", "gain")["cells"].tolist() == [[1]]


@pytest.mark.parametrize(
    ("route", "parameters", "said"),
    [
        ("/map", {"run": "none", "statistic": "gain"}, "no run 'none'"),
        ("/map", {"run": "a"}, "without 'statistic'"),
        ("/map", {"run": "a", "statistic": "gain", "rows": "-3"}, "'rows' must be a whole number above 0"),
        ("/layer", {"run": "a", "layer": "none"}, "no layer 'none'"),
        ("/findings", {}, "without 'run'"),
    ],
)
def test_a_question_that_cannot_be_answered_is_told_so(
    tmp_path: Path, route: str, parameters: Mapping[str, str], said: str
) -> None:
    run(tmp_path / "a", ["0"], {1: sample(1)})
    response = Tab(tmp_path).get(route, **parameters)
    assert response.status_code == 404
    assert said in json.loads(response.text)["error"]


def test_an_error_inside_is_an_answer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tab = Tab(tmp_path)
    tab.plugin._source = None  # type: ignore[assignment]
    with caplog.at_level(logging.ERROR, "bpkit"):
        response = tab.get("/runs")
    assert response.status_code == 500
    assert "AttributeError" in json.loads(response.text)["error"]
    assert "/runs was not answered" in caplog.text


def test_the_page_is_served_and_names_no_other_host(tmp_path: Path) -> None:
    tab = Tab(tmp_path)
    metadata = tab.plugin.frontend_metadata()
    assert metadata.tab_name == "Gradients"
    assert tab.get(metadata.es_module_path).mimetype == "text/javascript"
    assert tab.get("/style.css").mimetype == "text/css"
    for name in tab.apps:
        if name.endswith((".js", ".css")):
            text = tab.get(name).text.replace("http://www.w3.org/2000/svg", "")
            assert not [each for each in ("http:", "https:", "innerHTML", "eval(") if each in text], name
