"""`bpkit verify`: what is printed, and the exit code."""

import json

import pytest
from click.testing import CliRunner
from torch import nn

from bpkit.commands.verify import verify
from bpkit.core.errors import UnknownNameError
from bpkit.core.spec import OptimizerSpec
from bpkit.layers import linear, softmax
from bpkit.layers.linear import LinearFunction


class Registry:
    """Two pages and an optimizer without a twin, in place of all that is registered."""

    layers = (*linear.SPECS, *softmax.SPECS)
    optimizers = (OptimizerSpec(name="mine", optimizer=nn.Module, reference=None),)  # never stepped
    losses = regularizers = rules = ()


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setattr("bpkit.verification.subjects.registry", Registry)
    return lambda *arguments: CliRunner().invoke(verify, arguments)


def test_everything_registered_is_proven_in_a_table(run):
    result = run("--only", "parity", "--only", "steps")
    assert result.exit_code == 0
    rows = [line.split() for line in result.output.splitlines()]
    assert ["Linear", "✓·"] in rows
    assert ["mine", "·–", "steps", "–"] in rows
    assert "checks, in order: parity, steps (" in result.output
    assert "4 targets, all proven: 3 passed, 1 skipped" in result.output


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
    result = run("Linear", "--exclude", "compile")
    assert result.exit_code == 1
    rows = [line.split() for line in result.output.splitlines()]
    assert rows[1][:3] == ["Linear", "✗✗✓✓✓✓✓✓✓✓✓✗✓✓✓✓", "parity"]
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
        (["Linaer"], "unknown target 'Linaer': did you mean 'linear'"),
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
