"""The fixture and the marker that come with bpkit, in a repository that is not bpkit's."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import bpkit

INI = "[pytest]\naddopts = --strict-markers -p no:cacheprovider\nfilterwarnings = error\n"

PLUGIN = """
    import torch
    import bpkit
    from bpkit.core.spec import nbytes, randn

    class Double(bpkit.Function):
        wrong = 0.0

        @staticmethod
        def forward(input):
            return 2 * input

        @staticmethod
        def setup_context(ctx, inputs, output): ...

        @staticmethod
        def backward(ctx, grad_output):
            return 2 * grad_output

    class Wrong(Double):
        @staticmethod
        def backward(ctx, grad_output):
            return 2.002 * grad_output

    def layer(name, function):
        class Module(torch.nn.Module):
            def forward(self, input):
                return function.call(input)
        Module.__name__ = Module.__qualname__ = name
        globals()[name] = Module
        return bpkit.LayerSpec(
            name=name, module=Module, reference=None, samples=lambda: [bpkit.Sample(inputs=(randn(4, 3),))],
            saves="nothing", saved_bytes=lambda *_: 0,
        )

    @bpkit.hookimpl
    def bpkit_layers():
        return [layer("Right", Double), layer("Off", Wrong)]

    @bpkit.hookimpl
    def bpkit_recipes():
        return [bpkit.RecipeSpec(name="mine", toml="")]
"""

TESTS = """
    import pytest
    import torch

    @pytest.mark.bpkit_specs("mine.py")
    def test_proven(spec, verify):
        verify(spec, only=["gradcheck"])

    @pytest.mark.bpkit_specs("mine.py", kinds=["recipes"])
    def test_recipe(spec):
        assert spec.name == "mine"

    def test_fixture(verify):
        class Cube(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                ctx.save_for_backward(x)
                return x ** 3
            @staticmethod
            def backward(ctx, grad_output):
                return 3.1 * ctx.saved_tensors[0] ** 2 * grad_output
        verify(Cube, torch.randn(4), reference=lambda x: x ** 3, only=["parity"])

    def test_fixture_returns_the_report(verify):
        assert verify(torch.sin, torch.randn(4), reference=torch.sin, only="parity").ok
"""

MISTAKES = """
    import pytest

    @pytest.mark.bpkit_specs
    def test_no_name(spec): ...

    @pytest.mark.bpkit_specs("mine.py")
    def test_no_argument(): ...

    @pytest.mark.bpkit_specs("bpkit.layrs")
    def test_unknown(spec): ...

    @pytest.mark.bpkit_specs("bpkit.train")
    def test_nothing(spec): ...

    @pytest.mark.bpkit_specs("mine.py", kind=["layers"])
    def test_keyword(spec): ...

    @pytest.mark.bpkit_specs("mine.py", kinds=["layer"])
    def test_kind(spec): ...
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    tmp_path.joinpath("pytest.ini").write_text(INI)
    tmp_path.joinpath("mine.py").write_text(textwrap.dedent(PLUGIN))
    tmp_path.joinpath("test_mine.py").write_text(textwrap.dedent(TESTS))
    return tmp_path


def run(repository: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`pytest`, as a user runs it; where bpkit is not installed its plugin is named."""
    points = importlib.metadata.entry_points(group="pytest11")
    named = (
        [] if any(point.value == "bpkit.pytest_plugin" for point in points) else ["-p", "bpkit.pytest_plugin"]
    )
    if "no:bpkit" in arguments:
        named = []
    home = str(Path(bpkit.__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-m", "pytest", *named, *arguments],
        cwd=repository,
        env={**os.environ, "PYTHONPATH": home, "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_each_spec_is_a_test_and_a_failure_shows_the_report(repository: Path, workers: int) -> None:
    if workers and importlib.util.find_spec("xdist") is None:
        pytest.skip("pytest-xdist is not installed")
    done = run(repository, "-rA", "-q", *(["-n", str(workers)] if workers else []))
    outcomes = {line.split()[1].partition("::")[2]: line.split()[0] for line in summary(done.stdout)}
    assert outcomes == {
        "test_proven[layer-Right]": "PASSED",
        "test_proven[layer-Off]": "FAILED",
        "test_recipe[recipe-mine]": "PASSED",
        "test_fixture": "FAILED",
        "test_fixture_returns_the_report": "PASSED",
    }, done.stdout
    assert "✗ gradcheck: " in done.stdout
    assert "✗ parity: " in done.stdout
    assert "Traceback" not in done.stdout
    assert "torch.__trace" not in done.stdout


def summary(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith(("PASSED ", "FAILED "))]


def test_a_mistake_in_a_marker_is_one_line_each(repository: Path) -> None:
    repository.joinpath("test_mine.py").write_text(textwrap.dedent(MISTAKES))
    for test, text in {
        "test_no_name": 'name a plugin or several, as in bpkit_specs("bpkit-mine")',
        "test_no_argument": "the test takes no argument `spec`",
        "test_unknown": "unknown plugin 'bpkit.layrs': did you mean 'bpkit.layers'?",
        "test_nothing": "plugin bpkit.train brings nothing that can be proven",
        "test_keyword": "takes kinds=[...] beside the plugins, not kind",
        "test_kind": "unknown kind 'layer': did you mean 'layers'?",
    }.items():
        body = textwrap.dedent(MISTAKES)
        start = body.index("@", body.rindex("\n\n", 0, body.index(f"def {test}(")))
        only = body[start : body.index("...", start) + 3]
        repository.joinpath(f"{test}.py").write_text(f"import pytest\n\n{only}\n")
        repository.joinpath(f"{test}.expected").write_text(text)
    repository.joinpath("test_mine.py").unlink()
    done = run(repository, "-q")
    assert done.returncode == 2
    for expected in repository.glob("*.expected"):
        line = f"::{expected.stem}: marker bpkit_specs: {expected.read_text()}"
        assert any(line in each for each in done.stdout.splitlines()), done.stdout


def test_pytest_without_it_is_as_if_bpkit_were_not_there(repository: Path) -> None:
    repository.joinpath("test_mine.py").write_text("def test_nothing(): ...")
    done = run(repository, "-q", "-p", "no:bpkit")
    assert done.returncode == 0, done.stdout


def test_it_imports_no_torch_until_a_test_asks(repository: Path) -> None:
    repository.joinpath("test_mine.py").write_text(
        "import sys\ndef test_none(): assert 'torch' not in sys.modules"
    )
    done = run(repository, "-q")
    assert done.returncode == 0, done.stdout
    assert "bpkit_specs(*plugins" in run(repository, "--markers").stdout
