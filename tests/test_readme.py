"""The README's code runs, and prints what the README shows."""

import contextlib
import io
import re
from pathlib import Path

import pytest

from bpkit.plugins import registry

README = (Path(__file__).parents[1] / "README.md").read_text()
# A block of Python, and the output shown right under it.
BLOCKS = re.findall(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```)?", README, re.DOTALL)


def masked(text):
    """Lines without their numbers, which differ in the last digits between machines."""
    return re.sub(r"-?\d+(\.\d+)?(e[+-]?\d+)?", "#", text).strip().splitlines()


@pytest.mark.filterwarnings("ignore")
def test_every_block_runs_and_prints_what_is_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "readme"}  # one reader's session: later blocks use what earlier ones made
    for code, shown in BLOCKS:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "README.md", "exec"), names)
        assert masked(printed.getvalue()) == masked(shown), code
    assert len(BLOCKS) >= 6


@pytest.mark.parametrize("kind", ["layers", "losses", "optimizers", "regularizers", "diagnostics", "recipes"])
def test_everything_registered_is_in_the_table(kind):
    (row,) = re.findall(rf"^\| {kind} \| (.*) \|$", README, re.MULTILINE)
    assert row == ", ".join(f"`{spec.name}`" for spec in getattr(registry(), kind))
