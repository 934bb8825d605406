"""The README's code runs, and prints what the README shows."""

import contextlib
import io
import re
import sys
import types
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.nn.functional import mse_loss

from bpkit.commands.doctor import doctor
from bpkit.plugins import registry
from bpkit.plugins.table import table
from bpkit.tensorboard.reader import runs
from bpkit.train import build
from bpkit.train.config import parse

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
# A block of Python, and the output shown right under it.
BLOCKS = re.findall(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```)?", README, re.DOTALL)
# Blocks that need a library which may not be here.
INTEGRATIONS = {
    re.search(r"integrations\.(\w+)", code)[1]: code for code in re.findall(r"```py\n(.*?)```", README, re.S)
}
# What `bpkit doctor` says of the run that a block has left, up to the findings.
(DOCTOR,) = re.findall(r"bpkit doctor runs/sigmoid.*?```text\n(.*?)```", README, re.DOTALL)


def masked(text):
    """Lines without their numbers and bars, which differ in the last digits between machines."""
    return re.sub(r"-?\d+(\.\d+)?(e[+-]?\d+)?|[▏▎▍▌▋▊▉█]+", "#", text).strip().splitlines()


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
    said = CliRunner().invoke(doctor, ["runs/sigmoid"])
    assert said.exit_code == 1
    assert masked(said.stdout)[: len(masked(DOCTOR))] == masked(DOCTOR)


class Fitting(nn.Linear):
    """A model as Hugging Face's Trainer wants it: batches by name, the loss in what it gives."""

    def forward(self, x, y):
        return {"loss": mse_loss(super().forward(x), y)}


def given(library):
    """What the reader has before the block begins."""
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.randn(8, 4), torch.randn(8, 1)
    if library == "lightning":
        from lightning.pytorch.demos.boring_classes import BoringModel, RandomDataset

        return {"module": BoringModel(), "loader": torch.utils.data.DataLoader(RandomDataset(32, 8))}
    if library == "transformers":
        from transformers import TrainingArguments

        arguments = TrainingArguments("out", num_train_epochs=1, use_cpu=True, report_to="none")
        cases = [{"x": case, "y": value} for case, value in zip(x, y, strict=True)]
        return {"model": Fitting(4, 1), "arguments": arguments, "dataset": cases}
    from ignite.engine import create_supervised_trainer

    engine = create_supervised_trainer(model, optimizer, mse_loss)
    return {"engine": engine, "model": model, "optimizer": optimizer, "batches": [(x, y)] * 3}


@pytest.mark.cpu
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("library", ["lightning", "transformers", "ignite"])
def test_a_framework_is_watched_as_shown(library, tmp_path, monkeypatch):
    pytest.importorskip(library, reason=f"needs {library}: pip install 'bpkit[{library}]'")
    monkeypatch.chdir(tmp_path)
    reader = given(library)
    exec(compile(INTEGRATIONS[library], "README.md", "exec"), reader)
    if "engine" in reader:
        reader["engine"].run(reader["batches"])
    assert any(run.watched and run.finished for run in runs(tmp_path))


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


def test_the_table_of_diagnostics_is_that_of_the_specs():
    (rows,) = re.findall(r"\| diagnostic \| .*?\n\|---.*?\n(.*?)\n\n", README, re.DOTALL)
    shown = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows.splitlines()]
    assert [(name, kinds) for name, _, kinds in shown] == [
        (f"`{spec.name}`", ", ".join(f"`{kind}`" for kind in spec.kinds)) for spec in registry().diagnostics
    ]
    assert [name for name, text, _ in shown if "opt-in" in text] == [
        f"`{spec.name}`" for spec in registry().diagnostics if not spec.default
    ]


def test_pictures_are_there():
    assert all((ROOT / path).is_file() for path in re.findall(r"!\[.*?\]\((.*?)\)", README))
