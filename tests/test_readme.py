"""The README's code runs, and prints what the README shows."""

import contextlib
import io
import re
import sys
import types
from pathlib import Path

import pytest

from bpkit.plugins import registry
from bpkit.plugins.table import table
from bpkit.train import build
from bpkit.train.config import parse

README = (Path(__file__).parents[1] / "README.md").read_text()
# A block of Python, and the output shown right under it.
BLOCKS = re.findall(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```)?", README, re.DOTALL)


def masked(text):
    """Lines without their numbers, which differ in the last digits between machines."""
    return re.sub(r"-?\d+(\.\d+)?(e[+-]?\d+)?", "#", text).strip().splitlines()


@pytest.mark.filterwarnings("ignore")
def test_every_block_runs_and_prints_what_is_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    session = types.ModuleType("readme")  # one reader's: later blocks use what earlier ones made
    monkeypatch.setitem(sys.modules, "readme", session)  # where pickle looks
    for code, shown in BLOCKS:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "README.md", "exec"), vars(session))
        assert masked(printed.getvalue()) == masked(shown), code
    assert len(BLOCKS) >= 6


def test_the_toml_is_a_run():
    (text,) = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    run = parse(text, "README.md")
    assert len(build.model(run.model, 0, registry())) == 4


def test_the_table_of_layers_is_that_of_the_specs():
    (shown,) = re.findall(r"<!-- layers -->\n\n(.*)\n\n<!-- /layers -->", README, re.DOTALL)
    assert shown == table([*registry().layers, *registry().losses]), "run scripts/readme"


@pytest.mark.parametrize("kind", ["optimizers", "regularizers", "diagnostics", "recipes"])
def test_everything_registered_is_in_the_table(kind):
    (row,) = re.findall(rf"^\| {kind} \| (.*) \|$", README, re.MULTILINE)
    assert row == ", ".join(f"`{spec.name}`" for spec in getattr(registry(), kind))
