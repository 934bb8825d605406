"""`bpkit` from outside: exit codes, one line for a user's mistake, whole lines for a pipe."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

import bpkit
from bpkit import cli
from bpkit.core.errors import BpkitError
from bpkit.plugins import PluginInfo
from bpkit.plugins.registry import Registry

VARIABLES = ("BPKIT_PLUGINS", "BPKIT_BLOCK", "BPKIT_ASK", "BPKIT_AUTOLOAD", "BPKIT_TRACE")


@pytest.fixture(autouse=True)
def _no_options(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.setenv(variable, "")  # so that what the command line sets is taken back
        monkeypatch.delenv(variable)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], None]:
    """`command(body)`: `bpkit demo` runs `body`."""

    def install(body: Callable[[], Any]) -> None:
        monkeypatch.setattr(cli.Lazy, "get_command", lambda *_: click.command()(lambda: body()))

    return install


def raising(error: BaseException) -> Callable[[], None]:
    def body() -> None:
        raise error

    return body


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_names_every_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 0
    out, err = capsys.readouterr()
    assert [name for name in cli.COMMANDS if re.search(rf"^  {name} +\w", out, re.M)] == list(cli.COMMANDS)
    assert err == ""


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr() == (f"bpkit {bpkit.__version__}\n", "")


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_is_there_and_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([name, "--help"]) == 0
    assert f"Usage: bpkit {name}" in capsys.readouterr().out
    module = name.replace("-", "_")
    assert isinstance(getattr(importlib.import_module(f"bpkit.commands.{module}"), module), click.Command)


MISTAKES = {
    "command": (["plugin"], "unknown command 'plugin': did you mean 'plugins'?"),
    "nothing like it": (
        ["xyz"],
        "unknown command 'xyz': there are: bench, demo, doctor, new-plugin, plugins, train, verify, watch",
    ),
    "option": (["plugins", "--jsn"], "No such option '--jsn'. Did you mean '--json'?"),
    "global option": (["--trace-hook"], "No such option '--trace-hook'. Did you mean '--trace-hooks'?"),
    "argument": (["plugins", "extra"], "Got unexpected extra argument (extra)"),
    "no value": (["-p"], "Option '-p' requires an argument."),
    "no name": (["-p", "no:", "plugins"], "-p: names no plugin; it takes NAME or no:NAME"),
}


@pytest.mark.parametrize(("arguments", "text"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("bpkit: error: ")
    assert re.sub(r"\W+", " ", text) in re.sub(r"\W+", " ", err)  # click's punctuation varies by release


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (BpkitError("no such\n  loss"), "bpkit: error: no such loss\n"),
        (
            click.BadParameter("is empty", param_hint="FILE"),
            "bpkit: error: Invalid value for FILE: is empty\n",
        ),
        (click.ClickException("cannot"), "bpkit: error: cannot\n"),
    ],
)
def test_an_error_from_a_command_is_one_line_too(
    error: Exception, text: str, command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    command(raising(error))
    assert cli.main(["demo"]) == 2
    assert capsys.readouterr() == ("", text)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (KeyboardInterrupt(), 130),
        (click.Abort(), 130),
        (click.exceptions.Exit(1), 1),
        (click.exceptions.Exit(0), 0),
    ],
)
def test_how_a_command_ends_is_the_exit_code(
    error: BaseException, code: int, command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    command(raising(error))
    assert cli.main(["demo"]) == code
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "error", [ZeroDivisionError(), EOFError(), BrokenPipeError(), FileNotFoundError("x")]
)
def test_any_other_exception_is_a_bug_and_keeps_its_type(error: Exception, command: Any) -> None:
    command(raising(error))
    with pytest.raises(type(error)):
        cli.main(["demo"])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-p", "a", "-p", "no:b", "-p", "c"], {"BPKIT_ASK": "a,c", "BPKIT_BLOCK": "b"}),
        (["--trace-hooks"], {"BPKIT_TRACE": "1"}),
        ([], {}),
    ],
)
def test_global_options_reach_the_registry_and_worker_processes(
    arguments: list[str], expected: dict[str, str], command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    command(lambda: None)
    monkeypatch.setattr("bpkit.plugins.registry", Registry)  # loads nothing
    assert cli.main([*arguments, "demo"]) == 0
    assert {name: os.environ[name] for name in VARIABLES if name in os.environ} == expected


def test_options_add_to_what_the_environment_says(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    command(lambda: None)
    monkeypatch.setattr("bpkit.plugins.registry", Registry)
    monkeypatch.setenv("BPKIT_BLOCK", "a")
    assert cli.main(["-p", "no:b", "demo"]) == 0
    assert os.environ["BPKIT_BLOCK"] == "a,b"


# --- bpkit plugins ------------------------------------------------------------------------------------------

LONG = tuple(f"Layer{number}" for number in range(60))
PLUGINS = (
    PluginInfo("bpkit.layers", "0.1.0", {"layers": LONG, "events": ("bpkit_batch",)}),
    PluginInfo("lion", "2.0", status="blocked", error="-p no:lion"),
    PluginInfo("theirs", "", status="broken", error="ValueError: no \x1b[31mluck"),
)


@pytest.fixture
def _plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry()
    registry.plugins = PLUGINS
    monkeypatch.setattr("bpkit.commands.plugins.registry", lambda: registry)


@pytest.mark.usefixtures("_plugins")
def test_plugins_are_one_whole_line_each_when_piped(capsys: pytest.CaptureFixture[str]) -> None:
    importlib.import_module("bpkit.commands.plugins")
    assert cli.main(["plugins"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"bpkit.layers  0.1.0  ok       layers: {', '.join(LONG)}; events: bpkit_batch",
        "lion          2.0    blocked  -p no:lion",
        "theirs        -      broken   ValueError: no [31mluck",
    ]


@pytest.mark.usefixtures("_plugins")
def test_plugins_as_json_say_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plugins", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found[0] == {
        "name": "bpkit.layers",
        "version": "0.1.0",
        "provides": {"layers": list(LONG), "events": ["bpkit_batch"]},
        "status": "ok",
        "error": "",
    }
    assert [each["status"] for each in found] == ["ok", "blocked", "broken"]


# --- as a process -------------------------------------------------------------------------------------------


def process(arguments: list[str], path: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """`python -m bpkit` with `path` in front of its modules, stdout a pipe."""
    home = str(Path(bpkit.__file__).parents[1])
    environment = {**os.environ, **variables, "PYTHONPATH": os.pathsep.join([str(path), home])}
    command = [sys.executable, "-m", "bpkit", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A directory with a distribution whose plugin is broken."""
    tmp_path.joinpath("theirs.py").write_text("raise ValueError('no\\n luck')")
    metadata = tmp_path / "bpkit_theirs-0.4.dist-info"
    metadata.mkdir()
    metadata.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: bpkit-theirs\nVersion: 0.4\n")
    metadata.joinpath("entry_points.txt").write_text("[bpkit]\ntheirs = theirs\n")
    return tmp_path


def test_a_broken_plugin_is_a_line_of_the_report(site: Path) -> None:
    done = process(["plugins"], site)
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("theirs ")]
    assert line.split(maxsplit=3) == ["theirs", "0.4", "broken", "ValueError: no luck"]
    assert "\x1b" not in done.stdout


def test_a_broken_plugin_that_is_asked_for_is_an_error_in_one_line(site: Path) -> None:
    done = process(["-p", "theirs", "plugins"], site)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "bpkit: error: plugin theirs 0.4: ValueError: no luck\n"


def test_a_reader_that_leaves_is_no_traceback(site: Path) -> None:
    home = str(Path(bpkit.__file__).parents[1])
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "bpkit", "--help"],
        env={**os.environ, "PYTHONPATH": home},
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")
