"""What `verify` takes and returns, whatever the checks find."""

import copy
import re

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import bpkit
from bpkit.core.errors import BpkitError, UnknownNameError
from bpkit.core.spec import LayerSpec, OptimizerSpec, RegularizerSpec, RuleSpec, Sample, nbytes, randn
from bpkit.layers import linear
from bpkit.verification import CHECKS, Check, VerificationError
from bpkit.verification.check import Failed, Skipped, Warned
from bpkit.verification.run import examined
from bpkit.verification.targets import Target


class Halved(torch.autograd.Function):
    """`sin` with half its gradient."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, grad_output):
        return 0.5 * grad_output * ctx.saved_tensors[0].cos()


X = randn(3, 2)


def test_a_report_says_what_failed_with_numbers_and_a_remedy():
    report = bpkit.verify(Halved, X, reference=torch.sin, only=["parity", "unmutated"])
    assert not report.ok
    assert [each.name for each in report.results] == ["parity", "unmutated"]
    assert [each.status for each in report.results] == ["fail", "pass"]
    (failure,) = report.failures
    assert "the gradient of x at [" in failure.detail
    assert "relative error 5.0e-01, allowed 1e-12" in failure.detail
    assert "✗ parity: the gradient of x" in str(report)
    assert failure.remedy in str(report)
    with pytest.raises(VerificationError, match=r"Halved is not proven\n.*the gradient of x at"):
        report.raise_if_failed()
    assert issubclass(VerificationError, BpkitError)


def test_a_report_without_failures_raises_nothing():
    report = bpkit.verify(torch.sin, X, reference=torch.sin, only="parity")
    assert report.ok
    report.raise_if_failed()


def test_without_a_reference_the_comparison_is_skipped_and_said_to_be():
    report = bpkit.verify(torch.sin, X, only=["parity", "gradcheck"])
    assert [each.status for each in report.results] == ["skip", "pass"]
    assert report.results[0].detail == "no reference was given to compare with"
    assert "– parity" in str(report)


def test_inputs_modules_and_the_generator_are_left_as_they_were():
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
    state, x = copy.deepcopy(module.state_dict()), torch.randn(4, 2, requires_grad=True)
    before, version, random = x.detach().clone(), x._version, torch.get_rng_state()
    bpkit.verify(module, x, reference=copy.deepcopy(module), exclude=["compile", "grad*"])
    assert torch.equal(x, before)
    assert x._version == version
    assert x.dtype is torch.float32
    assert x.grad is None
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())


def test_only_inputs_that_require_a_gradient_are_differentiated_where_any_does():
    class Constant(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, scale):
            ctx.save_for_backward(scale)
            return x * scale

        @staticmethod
        def backward(ctx, grad_output):
            return grad_output * ctx.saved_tensors[0], None

    assert bpkit.verify(Constant, X.clone().requires_grad_(), X, reference=torch.mul, only="parity").ok
    assert not bpkit.verify(Constant, X, X, reference=torch.mul, only="parity").ok


def test_an_input_that_the_reference_does_not_differentiate_is_left_out():
    def reference(x, scale):
        return x * scale.detach()

    report = bpkit.verify(reference, X, X, reference=reference, only="subsets")
    assert report.results[0].detail == "1 subset"


@pytest.mark.parametrize("kind", [nn.LSTM, nn.RNN])
def test_nested_and_packed_inputs(kind):
    packed = pack_sequence([randn(3, 2), randn(2, 2)])
    module = kind(2, 2)
    names = ["parity", "subsets", "repeat", "unmutated"]
    assert bpkit.verify(module, packed, reference=kind(2, 2), only=names).ok
    module.register_forward_hook(
        lambda module, args, output: (output[0]._replace(data=output[0].data * 2), None)
    )
    assert not bpkit.verify(module, packed, reference=kind(2, 2), only="parity").ok


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"only": "parrity"}, UnknownNameError, "unknown check 'parrity': did you mean 'parity'"),
        ({"exclude": ["parity", "nothing*"]}, UnknownNameError, "unknown check 'nothing\\*'"),
        ({"reference": 3}, BpkitError, "the reference must be a callable, not 3"),
    ],
)
def test_a_wrong_argument_is_one_clear_line(arguments, error, message):
    with pytest.raises(error, match=message):
        bpkit.verify(torch.sin, X, **arguments)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (3, "verify takes an autograd.Function, a callable, a module, a spec or a registered name, not 3"),
        (nn.Linear, "verify takes an instance of Linear, not the class"),
    ],
)
def test_a_target_that_cannot_be_proven_is_one_clear_line(target, message):
    with pytest.raises(BpkitError, match=message):
        bpkit.verify(target, X)


def test_a_spec_brings_its_own_inputs():
    with pytest.raises(BpkitError, match="takes no inputs or reference"):
        bpkit.verify(linear.SPECS[0], X)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"only": "grad*"}, ["gradcheck", "gradgradcheck"]),
        ({"only": ["repeat", "parity"]}, ["parity", "repeat"]),
        ({"only": "grad*", "exclude": "gradgrad*"}, ["gradcheck"]),
    ],
)
def test_only_and_exclude_take_names_and_globs(arguments, expected):
    assert [each.name for each in bpkit.verify(torch.sin, X, **arguments).results] == expected


def test_every_check_has_a_name_of_its_own_and_says_what_to_do():
    assert len({check.name for check in CHECKS}) == len(CHECKS)
    assert all(check.harm.endswith(".") and check.remedy.endswith(".") for check in CHECKS)


class Subject(int):
    label = ""


def ending(*ends):
    """A check that ends on the n-th subject as `ends` say."""

    def run(subject):
        end = ends[subject]
        if isinstance(end, Exception):
            raise end
        return end

    return Check(name="check", harm="Harm.", remedy="Remedy.", run=run, subject=Subject)


@pytest.mark.parametrize(
    ("ends", "status", "detail"),
    [
        (("a", None), "pass", "a"),
        ((Skipped("why"), Skipped("why")), "skip", "why"),
        ((None, Skipped("why")), "pass", "1 of 2 samples skipped: why"),
        ((None, Warned("careful"), Skipped("why")), "warn", "careful"),
        ((Warned("careful"), Failed("wrong")), "fail", "wrong"),
        ((None, ValueError("broken\nhere")), "fail", "ValueError: broken"),
    ],
)
def test_the_worst_sample_decides(ends, status, detail):
    report = examined(Target("target", tuple(map(Subject, range(len(ends)))), {}), [ending(*ends)])
    assert [(each.status, each.detail) for each in report.results] == [(status, detail)]


def test_what_a_spec_declares_unprovable_is_skipped_with_its_reason():
    report = examined(Target("target", (Subject(0),), {"check": "no such thing"}), [ending(Failed("wrong"))])
    assert (report.results[0].status, report.results[0].detail) == ("skip", "no such thing")


# --- specs ------------------------------------------------------------------------------------------


class SinFunction(bpkit.Function):
    @staticmethod
    def forward(x):
        return x.sin()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output * ctx.saved_tensors[0].cos()


class Sin(nn.Module):
    def forward(self, x):
        return SinFunction.call(x)


class TorchSin(nn.Module):
    def forward(self, x):
        return x.sin()


def sin_spec(**changes):
    settings = {
        "name": "Sin",
        "module": Sin,
        "reference": TorchSin,
        "samples": lambda: [Sample(inputs=(X,))],
        "saves": "input",
        "saved_bytes": lambda module, inputs, output: nbytes(inputs[0]),
    }
    return LayerSpec(**{**settings, **changes})


class Kernel(nn.Module):
    """torch's own derivation in place of ours."""

    def forward(self, x):
        return x.sigmoid()


class Once(Sin):
    class Function(bpkit.Function):
        @staticmethod
        def forward(x):
            return x.sin()

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(inputs[0])

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, grad_output):
            return grad_output * ctx.saved_tensors[0].cos()

    def forward(self, x):
        return self.Function.call(x)


@pytest.mark.parametrize(
    ("changes", "failing"),
    [
        ({}, set()),
        ({"saved_bytes": lambda module, inputs, output: nbytes(inputs[0]) - 1}, {"memory"}),
        ({"module": Kernel, "reference": Kernel}, {"purity"}),
        ({"module": Once}, {"gradgradcheck"}),
        ({"module": Once, "not_proven": {"gradgradcheck": "declared"}}, set()),
    ],
)
def test_a_registered_layer_is_held_to_what_a_stranger_is_advised(changes, failing):
    report = bpkit.verify(sin_spec(**changes), only=["parity", "memory", "purity", "gradgradcheck"])
    assert {each.name for each in report.failures} == failing


class WrongDecay(torch.optim.SGD):
    def step(self, closure=None):
        super().step(closure)
        self.param_groups[0]["params"][0].data.mul_(1 - 1e-10)


class Following(torch.optim.SGD):
    pass


@pytest.mark.parametrize(("kind", "ok"), [(Following, True), (WrongDecay, False)])
def test_an_optimizer_is_followed_step_for_step(kind, ok):
    settings = ({"lr": 0.1}, {"lr": 0.01, "momentum": 0.9})
    spec = OptimizerSpec(name="sgd", optimizer=kind, reference=torch.optim.SGD, settings=settings)
    report = bpkit.verify(spec)
    assert [each.name for each in report.results] == ["steps"]
    assert report.ok == ok
    if not ok:
        assert "[lr=0.1] parameter 0, after step " in report.failures[0].detail


class Ridge:
    def __init__(self, factor):
        self.factor = factor

    def value(self, parameter):
        return parameter.square().sum()

    def gradient(self, parameter):
        return self.factor * parameter


@pytest.mark.parametrize(("factor", "ok"), [(2, True), (1, False)])
def test_a_regularizer_has_the_gradient_of_its_value(factor, ok):
    spec = RegularizerSpec(name="ridge", regularizer=Ridge, settings=({"factor": factor},))
    report = bpkit.verify(spec, exclude="compile")
    assert report.ok == ok
    assert {"parity", "gradcheck"} <= {each.name for each in report.results if each.status != "skip"}


class Tilted(nn.Linear):
    """The weight gradient turned by 45 degrees at most."""

    def forward(self, input):
        weight = self.weight.detach() + (self.weight - self.weight.detach()) * 1
        weight.register_hook(lambda gradient: gradient + gradient.abs())
        return nn.functional.linear(input, weight, None)


@pytest.mark.parametrize(("angle", "ok"), [(90.0, True), (1.0, False)])
def test_a_rule_is_held_to_its_angle(monkeypatch, angle, ok):
    class Registry:
        layers = (
            LayerSpec(
                name="Linear",
                module=nn.Linear,
                reference=nn.Linear,
                samples=lambda: [Sample(inputs=(randn(4, 3),), args=(3, 2), kwargs={"bias": False})],
                saves="input",
                saved_bytes=lambda *_: 0,
            ),
        )

    monkeypatch.setattr("bpkit.verification.targets.registry", Registry)
    report = bpkit.verify(RuleSpec(name="tilted", modules={nn.Linear: Tilted}, angle=angle))
    assert [each.name for each in report.results] == ["angle"]
    assert report.ok == ok


class Unpacks(torch.autograd.Function):
    """Reads a saved tensor that there is not."""

    @staticmethod
    def forward(ctx, x, scale):
        ctx.save_for_backward(x)
        return scale * x.sin()

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output * ctx.saved_tensors[1], None


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((X,), r"the forward raises TypeError: .*missing 1 required positional argument: 'scale'"),
        ((X, 2.0), r"the backward raises IndexError: tuple index out of range, at test_verify_api.py:\d+"),
    ],
)
def test_what_does_not_run_is_one_failure_with_the_line_that_raised(inputs, message):
    report = bpkit.verify(Unpacks, *inputs)
    (result,) = report.results
    assert (result.name, result.status) == ("call", "fail")
    assert re.match(message, result.detail), result.detail
