"""`bpkit new-plugin`: what it writes works at once, and what it refuses leaves nothing behind."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import bpkit
from bpkit import cli
from bpkit.plugins import guide, registry, scaffold
from bpkit.plugins.registry import Registry

ALL = ",".join(scaffold.KINDS)
PIECES = Path(scaffold.__file__).parent / "template"
HOME = str(Path(bpkit.__file__).parents[1])


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*arguments: str, path: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """`python ...` with `path` in front of its modules, as far as it has any."""
    environment = {**os.environ, **variables, "PYTHONPATH": os.pathsep.join([str(path), HOME])}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False
    )


def install(name: str, module: str) -> Path:
    """What pip leaves of a distribution, the entry point as its pyproject has it."""
    source = Path(name, "src").resolve()
    project = tomllib.loads(Path(name, "pyproject.toml").read_text())["project"]
    metadata = source / f"{module}-{project['version']}.dist-info"
    metadata.mkdir()
    metadata.joinpath("METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    points = "\n".join(f"{key} = {value}" for key, value in project["entry-points"]["bpkit"].items())
    metadata.joinpath("entry_points.txt").write_text(f"[bpkit]\n{points}\n")
    return source


@pytest.mark.parametrize("kind", [*scaffold.KINDS, ALL])
def test_what_is_written_registers_and_lints(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["new-plugin", "Bpkit-Try.it", "--kind", kind]) == 0
    written = capsys.readouterr().out.split()
    assert {str(path) for path in Path("Bpkit-Try.it").rglob("*") if path.is_file()} == set(written)
    module = Path("Bpkit-Try.it", "src", "bpkit_try_it", "__init__.py")
    provides = registry().extended(module).plugins[-1].provides
    assert [len(names) for names in provides.values()] == [1] * len(kind.split(","))
    assert all(name.startswith("try_it.") for names in provides.values() for name in names)
    sys.modules.pop("__init__", None)
    for path in written:
        assert "mine" not in Path(path).read_text().replace("determine", "")
    if importlib.util.find_spec("ruff"):
        for command in (["check"], ["format", "--check"]):
            done = run("-m", "ruff", *command, "--no-cache", "Bpkit-Try.it", path=Path())
            assert done.returncode == 0, done.stdout


def test_all_kinds_pass_their_own_tests_and_are_listed_as_ok() -> None:
    """Their types are checked by `.ci/run`, which installs them: mypy reads all of torch for it."""
    assert cli.main(["new-plugin", "bpkit-try", "--kind", ALL]) == 0
    source = install("bpkit-try", "bpkit_try")
    done = run("-m", "bpkit", "-p", "bpkit-try", "plugins", path=source)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("bpkit-try ")]
    assert line.split()[1:3] == ["0.1.0", "ok"]
    # Where bpkit runs from a checkout that nobody installed, its own pytest plugin has no entry point.
    points = importlib.metadata.entry_points(group="pytest11")
    own = (
        [] if any(point.value == "bpkit.pytest_plugin" for point in points) else ["-p", "bpkit.pytest_plugin"]
    )
    tests = ["-m", "pytest", "-q", *own, "-p", "no:cacheprovider", "--rootdir", "bpkit-try", "bpkit-try"]
    done = run(*tests, path=source)
    assert done.returncode == 0, done.stdout


def test_the_readme_has_the_guide_and_every_kind_asked_for() -> None:
    assert cli.main(["new-plugin", "bpkit-try", "--kind", "loss, layer"]) == 0
    text = Path("bpkit-try", "README.md").read_text()
    assert guide.guide().rstrip() in text
    assert 'Trainer(loss="try.log_cosh")' in text
    assert text.index("Softcap") < text.index("LogCosh")
    assert "HeavyBall" not in text


MISTAKES = {
    "unknown kind": (["bpkit-try", "--kind", "layr"], "unknown kind 'layr': did you mean 'layer'?"),
    "no kind": (["bpkit-try", "--kind", ","], "no kind is named; there are: layer, loss, "),
    "no name at all": ([], "Missing argument 'NAME'"),
    "a path": (["a/b"], "'a/b' is no name for a distribution"),
    "a space": (["bpkit mine"], "'bpkit mine' is no name for a distribution"),
    "ends with a hyphen": (["bpkit-"], "'bpkit-' is no name for a distribution"),
    "a digit first": (["3d"], "'3d' would be imported as '3d', which Python cannot; take bpkit-3d"),
    "a keyword": (["lambda"], "'lambda' would be imported as 'lambda', which Python cannot"),
    "standard library": (
        ["json"],
        "'json' would be imported as 'json', which is there already; take another",
    ),
    "installed": (["Torch"], "'Torch' would be imported as 'torch', which is there already"),
    "bpkit itself": (["bpkit"], "'bpkit' would be imported as 'bpkit', which is there already"),
    "a distribution": (["PyTest-XDist"], "a distribution called 'PyTest-XDist' is installed already"),
    "a built-in plugin": (["bpkit.layers"], "a plugin called 'bpkit.layers' is there already"),
    "there already": (["taken"], "./taken is there already, and nothing is overwritten"),
    "a dangling link": (["link"], "./link is there already, and nothing is overwritten"),
}


@pytest.mark.parametrize(("arguments", "text"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_writes_nothing(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "PyTest-XDist" in arguments and importlib.util.find_spec("xdist") is None:
        pytest.skip("pytest-xdist is not installed")
    Path("taken").write_text("mine")
    Path("link").symlink_to("nowhere")
    assert cli.main(["new-plugin", *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert text in err
    assert sorted(path.name for path in Path().iterdir()) == ["link", "taken"]
    assert Path("taken").read_text() == "mine"


def test_what_cannot_be_written_whole_is_not_left_in_part(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    assert cli.main(["new-plugin", "bpkit-try"]) == 2
    assert capsys.readouterr().err.endswith("cannot be written: No space left on device\n")
    assert not Path("bpkit-try").exists()


def test_every_piece_registers_by_itself_under_a_name_of_its_own() -> None:
    names = [
        name
        for kind in scaffold.KINDS
        for info in Registry().extended(PIECES / f"{kind}.py").plugins
        for brought in info.provides.values()
        for name in brought
    ]
    assert len(set(names)) == len(scaffold.KINDS)
