"""`bpkit verify`: what is printed, and the exit code."""

import json
import sys
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner
from torch import nn

from bpkit.commands.verify import verify
from bpkit.core.errors import BpkitError, UnknownNameError
from bpkit.core.spec import OptimizerSpec
from bpkit.layers import linear, softmax
from bpkit.layers.linear import LinearFunction
from bpkit.plugins import registry


class Registry:
    """Two pages and an optimizer without a twin, in place of all that is registered."""

    layers = (*linear.SPECS, *softmax.SPECS)
    optimizers = (OptimizerSpec(name="mine", optimizer=nn.Module, reference=None),)  # never stepped
    losses = regularizers = rules = ()


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setattr("bpkit.verification.targets.registry", Registry)
    return lambda *arguments: CliRunner().invoke(verify, arguments)


def test_everything_registered_is_proven_in_a_table(run):
    result = run("--only", "parity", "--only", "steps")
    assert result.exit_code == 0
    rows = [line.split() for line in result.output.splitlines()]
    assert ["Linear", "✓·"] in rows
    assert ["mine", "·–", "steps", "–"] in rows
    assert "checks, in order: parity, steps (" in result.output
    assert "7 targets, all proven: 6 passed, 1 skipped" in result.output


@pytest.mark.parametrize("name", ["Linear", "linear"])
def test_a_name_or_an_alias_chooses_one(run, name):
    result = run(name, "--only", "parity")
    assert "1 target, all proven" in result.output


def test_a_layer_broken_by_hand_turns_it_red(run, monkeypatch):
    right = LinearFunction.backward

    def broken(ctx, grad_output):
        grad_input, grad_weight, grad_bias = right(ctx, grad_output)
        return grad_input, None if grad_weight is None else 1.0001 * grad_weight, grad_bias

    monkeypatch.setattr(LinearFunction, "backward", staticmethod(broken))
    result = run("Linear", "--only", "parity", "--only", "gradcheck", "--only", "raw", "--only", "module")
    assert result.exit_code == 1
    rows = [line.split() for line in result.output.splitlines()]
    assert rows[1] == ["Linear", "✗✗✓✓", "parity", "✗,", "gradcheck", "✗"]
    assert "✗ parity: [" in result.output
    assert "the gradient of weight at [" in result.output
    assert "relative error 1.0e-04" in result.output
    assert "1 target, 1 not proven" in result.output


def test_json_holds_every_result(run):
    result = run("Linear", "--only", "memory", "--json")
    (report,) = json.loads(result.output)
    assert report["target"] == "Linear"
    assert report["ok"] is True
    assert [each["name"] for each in report["results"]] == ["memory"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["Linaer"], "unknown target 'Linaer': did you mean 'Linear'"),
        (["Linear", "--only", "memroy"], "unknown check 'memroy': did you mean 'memory'"),
    ],
)
def test_an_unknown_name_is_named_with_the_nearest(run, arguments, message):
    result = run(*arguments)
    assert isinstance(result.exception, UnknownNameError)
    assert message in str(result.exception)


def test_checks_are_listed_with_what_they_guard_against(run):
    result = run("--checks", "--only", "p*")
    assert [line.split()[0] for line in result.output.splitlines()] == [
        "check",
        "parity",
        "purity",
        "precision",
    ]


KERNELS = """
import torch

class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor):
        ctx.save_for_backward(x)
        ctx.factor = factor
        return factor * x * x * x

    @staticmethod
    def backward(ctx, grad_output):
        return 3.003 * ctx.factor * ctx.saved_tensors[0] ** 2 * grad_output, None

def power(x, factor):
    return factor * x ** 3

def inputs():
    return torch.randn(3, 2), 0.5
"""


@pytest.fixture
def kernels(tmp_path, monkeypatch):
    (tmp_path / "my_kernels.py").write_text(KERNELS)
    (tmp_path / "broken_kernels.py").write_text("import torch\n1 / 0\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("my_kernels", None)


@pytest.mark.parametrize("name", ["my_kernels:Cube", "my_kernels.py:Cube"])
@pytest.mark.parametrize("given", ["3x2, 0.5", "randn(3, 2), 0.5", "my_kernels:inputs"])
def test_an_object_of_anybodys_is_proven_on_given_inputs(run, kernels, name, given):
    result = run(name, "--inputs", given, "--reference", "my_kernels:power", "--only", "parity")
    assert result.exit_code == 1, result.output
    assert "relative error 1.0e-03, allowed 1e-12" in result.output


def test_reports_are_written_for_ci_and_for_a_browser(run, kernels):
    arguments = [
        "--inputs",
        "3x2, 0.5",
        "--reference",
        "my_kernels:power",
        "--only",
        "parity",
        "--only",
        "jvp",
    ]
    run("my_kernels:Cube", *arguments, "--junit", "report.xml", "--html", "report.html")
    suite = ElementTree.parse(kernels / "report.xml").getroot()[0]
    assert (suite.get("name"), suite.get("tests"), suite.get("failures"), suite.get("skipped")) == (
        "Cube",
        "2",
        "1",
        "1",
    )
    assert "relative error 1.0e-03" in suite[0][0].get("message")
    page = (kernels / "report.html").read_text()
    assert page.count("<circle") == 6  # the error of each element
    assert "1 of 1 not proven" in page
    assert "http" not in page  # it loads nothing


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["my_kernels:Cube"], "needs --inputs"),
        (["my_kernels:Cbue", "--inputs", "3x2"], "has no 'Cbue'; did you mean 'Cube'"),
        (["no_kernels:Cube", "--inputs", "3x2"], "no module 'no_kernels'"),
        (["no_kernels.py:Cube", "--inputs", "3x2"], "no file no_kernels.py"),
        (["broken_kernels:Cube", "--inputs", "3x2"], "cannot be imported: ZeroDivisionError"),
        (["my_kernels:Cube", "--inputs", "3x"], "write values separated by commas"),
        (["Linear", "--inputs", "3x2"], "go with MODULE:OBJECT"),
        (["Linear", "--only", "raw", "--html", "nowhere/report.html"], "no such directory"),
    ],
)
def test_what_cannot_be_proven_is_one_line(run, kernels, arguments, message):
    result = run(*arguments)
    assert isinstance(result.exception, BpkitError)
    assert message in str(result.exception)
    assert "\n" not in str(result.exception)


def test_several_processes_prove_what_one_does():
    names = [spec.name for spec in registry().optimizers] + ["Sigmoid", "Tanh", "ReLU"]
    alone, together = (
        CliRunner().invoke(verify, [*names, "--only", "raw", "--only", "steps", "--jobs", jobs, "--json"])
        for jobs in ("1", "2")
    )
    summaries = [
        [(each["target"], each["ok"], len(each["results"])) for each in json.loads(run.output)]
        for run in (alone, together)
    ]
    assert len(summaries[0]) == 8
    assert summaries[0] == summaries[1]
