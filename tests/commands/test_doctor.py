"""`bpkit doctor`: what it says of a run's logs on a terminal, in a pipe and as JSON."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import bpkit
from bpkit import cli
from bpkit.commands._doctor_case import Case
from bpkit.core.bars import shortened
from bpkit.tensorboard import Writer
from bpkit.tensorboard.reader import Run
from bpkit.tensorboard.record import ABSENT, FINDINGS, Verdicts
from tests.commands.logs import CRITICAL, FAULT, NAMES, doctor, write


def test_a_healthy_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write(tmp_path / "a")
    line = f"{run}: healthy, nothing found in 3 steps; finished; watching took 0.25 s, 1.2% of the time\n"
    assert doctor(capsys, run) == (0, line)


def test_a_sick_run_is_shown_by_depth_and_its_findings_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write(tmp_path / "a", [FAULT, CRITICAL])
    code, out = doctor(capsys, run)
    head, cost, _, caption, *rest = out.splitlines()
    assert code == 1
    assert head == f"{run}: 2 findings, 1 critical, in 3 steps; finished"
    assert cost == "Net; 3 modules; 3 samples; watching took 0.25 s, 1.2% of the time"
    assert caption == "gradient norm by layer at step 3, input first, log scale"
    bars = [line.split() for line in rest[:3]]
    assert [bar[:2] for bar in bars] == [
        ["encoder.0", "1.0e-03"],
        ["encoder.1", "1.0e-02"],
        ["head", "1.0e+00"],
    ]
    assert len(bars[0][2]) < len(bars[1][2]) < len(bars[2][2])
    assert rest[4:] == [
        "critical: nonfinite in head, step 3",
        "  evidence: slope per layer -0.5",
        f"  advice:   {FAULT['advice']}",
        "",
        "warning: vanishing in encoder.0, encoder.1, steps 2 to 3",
        "  evidence: slope per layer -0.5",
        f"  advice:   {FAULT['advice']}",
    ]


def test_what_is_not_finite_is_written_and_what_was_not_measured_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out = doctor(capsys, write(tmp_path, [FAULT], norms=[[float("nan"), ABSENT, float("inf")]]))
    assert "\nencoder.0      nan\nhead           inf\n\n" in out


def test_a_deep_model_fits_a_screen_and_its_layers_keep_their_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = tuple(f"encoder.layers.{index}.self_attention.out_projection" for index in range(90))
    _, out = doctor(capsys, write(tmp_path, [FAULT], names=names, norms=[[1.0] * 90]))
    caption, *rows = out.splitlines()[3:34]
    assert caption.endswith("input first, log scale, every 3rd of 90 layers")
    assert [row.split()[0] for row in rows] == [f"e.l.{index}.s.out_projection" for index in range(0, 90, 3)]
    assert max(map(len, rows)) <= 80


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("a.linear", "a.linear"),
        ("encoder.12.up", "encoder.12.up"),
        ("encoder.12.linear", "e.12.linear"),
        ("encoder.123456789.linear", "…56789.linear"),
        ("averylongnamewithoutparts", "…ithoutparts"),
    ],
)
def test_a_long_name_is_shortened_from_the_outside(name: str, short: str) -> None:
    assert shortened(name, max(len(short), 12)) == short


def test_several_runs_are_told_apart_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "a" / "good")
    write(tmp_path / "b", [FAULT])
    write(tmp_path / "c", [CRITICAL])
    with Writer(tmp_path / "unwatched") as writer:
        writer.add_scalar("loss", 1.0, 1)
    code, out = doctor(capsys, tmp_path)
    assert code == 1
    titles = [line for line in out.splitlines() if line.startswith(str(tmp_path))]
    assert [title.removeprefix(f"{tmp_path}{os.sep}").split(",")[0] for title in titles] == [
        "a/good: healthy",
        "b: 1 finding in 3 steps; finished",
        "c: 1 critical finding in 3 steps; finished",
    ]
    assert out.endswith("\n\n3 runs: 1 healthy, 2 with findings, 1 of them critical\n")


@pytest.mark.parametrize(("severity", "code"), [("info", 0), ("warning", 0), ("critical", 1)])
def test_the_exit_code_is_1_for_a_critical_finding(
    severity: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write(tmp_path, [{**FAULT, "severity": severity}])
    assert doctor(capsys, run)[0] == doctor(capsys, run, "--json")[0] == code


@pytest.mark.parametrize(
    ("finished", "silent", "gap", "state"),
    [
        (True, 1e6, 1, "finished"),
        (False, 3, 1, "running"),
        (False, -3, 1, "running"),  # another machine's clock
        (False, 1000, 600, "running"),
        (False, 1000, 1, "stopped"),
    ],
)
def test_a_run_that_is_not_finished_runs_as_long_as_it_writes(
    finished: bool, silent: float, gap: float, state: str
) -> None:
    run = Run(".", verdicts=Verdicts(7), written=5000.0, gap=gap, finished=finished)
    case = Case(Path("runs/a"), run, now=5000.0 + silent)
    assert case.state == state
    endings = {
        "finished": "healthy, nothing found in 7 steps; finished",
        "running": "healthy so far, nothing found in 7 steps; still running, last written",
        "stopped": "healthy so far, nothing found in 7 steps; stopped without an end 17 min ago (killed?)",
    }
    assert case.title.startswith(f"runs/a: {endings[state]}")


def test_a_strangers_text_does_not_reach_the_terminal_as_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "\x1b[2Jhead"
    run = write(tmp_path, [{**FAULT, "layers": [evil], "advice": evil, "kind": evil}], names=(evil, "b", "c"))
    _, out = doctor(capsys, run)
    assert "\x1b" not in out
    assert out.count("[2Jhead") == 4


def mistake(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert cli.main(["doctor", *map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    return err.removeprefix("bpkit: error: ").strip()


def test_where_there_is_nothing_of_bpkits_it_says_what_there_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    how = "bpkit.watch(model, optimizer, logdir=...) and `bpkit train` write them"
    assert mistake(capsys, tmp_path / "a") == f"{tmp_path / 'a'} is not there"
    assert mistake(capsys, tmp_path) == f"{tmp_path}: no event files in it or below; it holds nothing; {how}"
    for name in "gfedcba":
        tmp_path.joinpath(name).write_text("")
    assert "it holds a, b, c, d, e and 2 more;" in mistake(capsys, tmp_path)
    assert "is a file; name the directory that it is in" in mistake(capsys, tmp_path / "a")
    with Writer(tmp_path) as writer:
        writer.add_scalar("accuracy", 1.0, 1)
    text = mistake(capsys, tmp_path)
    assert text == f"{tmp_path}: its TensorBoard logs are of no watch, they hold accuracy; {how}"


def test_a_later_format_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Writer(tmp_path) as writer:
        writer.add_record(FINDINGS, '{"version": 2}', 1)
    assert "written by a later bpkit (format 2, this one reads 1); a newer bpkit may read it" in mistake(
        capsys, tmp_path
    )


@pytest.mark.parametrize("broken", [{"severity": "bad"}, {"layers": None}, {"evidence": {"slope": "steep"}}])
def test_a_finding_that_is_none_is_one_line(
    broken: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mistake(capsys, write(tmp_path, [{**FAULT, **broken}])).startswith(f"{tmp_path}: ")


def test_a_page_that_cannot_be_written_is_refused_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write(tmp_path / "run")
    for path, reason in ((tmp_path, "a directory"), (tmp_path / "no" / "a.html", "no such directory")):
        assert mistake(capsys, run, "--html", path) == f"{path} cannot be written: {reason}"


def test_json_says_all_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finding = {**FAULT, "evidence": {"norm": float("inf"), "slope": -0.5}}
    write(tmp_path / "a", [finding], norms=[[1, 1, 1], [float("nan"), ABSENT, 0.1]], finished=False)
    write(tmp_path / "b")
    code, out = doctor(capsys, tmp_path, "--json")
    sick, healthy = json.loads(out, parse_constant=pytest.fail)  # NaN is no JSON
    assert code == 0
    assert (healthy["run"], healthy["healthy"], healthy["state"]) == (str(tmp_path / "b"), True, "finished")
    assert (sick["healthy"], sick["state"], sick["step"], sick["samples"]) == (False, "running", 2, 2)
    assert (sick["seconds"], sick["share"]) == (0.25, 0.012)
    assert sick["findings"] == [{**FAULT, "evidence": {"norm": "Infinity", "slope": -0.5}}]
    assert sick["losses"] == {"train": {"steps": [1, 2], "values": [1.0, 0.5]}}
    (layers,) = sick["layers"]
    assert (layers["layers"], layers["columns"], layers["step"]) == (
        list(NAMES),
        ["gain", "gradient norm"],
        2,
    )
    assert layers["values"] == [[1.0, "NaN"], [1.0, None], [1.0, 0.1]]


def environment(**variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    return {**kept, "PYTHONPATH": str(Path(bpkit.__file__).parents[1]), **variables}


def test_it_needs_no_torch(tmp_path: Path) -> None:
    write(tmp_path, [CRITICAL])
    page = tmp_path / "page.html"
    code = (
        "import sys; from bpkit import cli\n"
        f"assert cli.main(['doctor', {str(tmp_path)!r}, '--html', {str(page)!r}]) == 1\n"
        "assert not {'torch', 'tensorflow'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], env=environment(), check=True, capture_output=True)


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no pseudo-terminals here")
def test_on_a_terminal_lines_are_folded_and_coloured(tmp_path: Path) -> None:
    write(tmp_path / "a", [CRITICAL])
    ours, theirs = os.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "bpkit", "doctor", "a"],
        env=environment(COLUMNS="80", TERM="xterm-256color"),
        cwd=tmp_path,
        stdout=theirs,
        check=False,
    )
    os.close(theirs)
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        out = terminal.read(1 << 16).decode()
    lines = re.sub(r"\x1b\[[\d;]*m", "", out).splitlines()
    assert done.returncode == 1
    assert "\x1b[31mcritical: nonfinite" in out
    assert max(map(len, lines)) <= 80
    advice = next(index for index, line in enumerate(lines) if line.startswith("  advice:   "))
    assert re.match(r" {12}\S", lines[advice + 1])


def test_what_was_not_looked_at_is_said_of_a_healthy_run_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left_out = {"Curvature": "no closure <b>"}
    write(tmp_path / "a", left_out=left_out)
    write(tmp_path / "b", [FAULT], left_out=left_out)
    code, out = doctor(capsys, tmp_path, "--html", tmp_path / "page.html")
    assert code == 0
    assert out.count("not looked at: Curvature: no closure <b>") == 2
    page = (tmp_path / "page.html").read_text()
    assert page.count("not looked at: Curvature: no closure &lt;b&gt;") == 2
    _, told = doctor(capsys, tmp_path / "a", "--json")
    assert json.loads(told)[0]["left_out"] == left_out
