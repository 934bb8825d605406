"""Every module against torch's own, on the samples that PyTorch tests itself with."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing._internal.common_modules import ModuleErrorEnum, module_db

import bpkit.nn
from bpkit.core.graph import kind, nodes
from bpkit.core.module import Handwritten
from bpkit.core.purity import audit, run_backward
from bpkit.core.structure import flatten, tensors
from tests.conformance.entries import Entry, entries
from tests.conformance.pair import (
    Arguments,
    Run,
    build,
    call,
    cotangents,
    describe,
    pairs,
    require_no_farther,
    require_same,
    require_tensors,
    run,
    spread,
)

# torch's own modules warn on some of torch's own samples.
pytestmark = pytest.mark.filterwarnings("ignore")

RTOL = {torch.float64: 1e-11, torch.float32: 2e-5}
# Values and gradients are compared on every sample of torch's. Of an entry with hundreds, what follows from
# them is looked at on so many, spread over all; what is slow (numerical differentiation, tracing), on so few.
MANY, FEW, TRACED = 16, 4, 2

every_module = pytest.mark.parametrize("entry", entries().values(), ids=lambda entry: entry.name)
# A lazy module is of another entry's class once it has been called, as it is before any of these.
every_class = pytest.mark.parametrize(
    "entry", [each for each in entries().values() if not each.lazy], ids=lambda entry: entry.name
)


@pytest.fixture
def many(request: pytest.FixtureRequest) -> int | None:
    """How many samples to run: all of them with --every-sample."""
    return _most(request, MANY)


@pytest.fixture
def few(request: pytest.FixtureRequest) -> int | None:
    return _most(request, FEW)


@pytest.fixture
def traced(request: pytest.FixtureRequest) -> int | None:
    return _most(request, TRACED)


def _most(request: pytest.FixtureRequest, number: int) -> int | None:
    if request.config.getoption("--every-sample"):
        return None
    # Of layers of layers, each proven by itself, one sample takes what dozens of another entry take.
    stacks = "Transformer" in request.getfixturevalue("entry").name
    return max(1, number // 4) if stacks else number


def test_no_module_of_torchs_list_is_left_out() -> None:
    theirs = {info.module_cls for info in module_db}
    assert theirs <= {entry.theirs for entry in entries().values()}
    if torch.__version__.startswith("2.13."):
        assert len(theirs) == 114


@every_module
def test_the_class_is_ours_and_torchs(entry: Entry) -> None:
    assert entry.ours is not entry.theirs
    assert issubclass(entry.ours, Handwritten)
    assert issubclass(entry.ours, entry.theirs)


@pytest.mark.parametrize(
    "entry", [each for each in entries().values() if each.lazy], ids=lambda entry: entry.name
)
def test_a_lazy_module_is_torchs_until_its_first_call_and_bpkits_after(entry: Entry) -> None:
    for sample, training in entry.inputs(torch.float64):
        theirs, ours = (build(cls, sample, torch.float64, training) for cls in (entry.theirs, entry.ours))
        assert repr(ours) == repr(theirs)
        assert ours.has_uninitialized_params()
        for each in (theirs, ours):
            call(each, Arguments(sample.forward_input))
        assert type(ours) is getattr(bpkit.nn, type(theirs).__name__)


@every_module
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_outputs_gradients_and_buffers_are_torchs(entry: Entry, dtype: torch.dtype) -> None:
    for label, theirs, ours, given in pairs(entry, dtype):
        truth = theirs if entry.lazy else copy.deepcopy(theirs)
        _require_torchs(run(ours, given), run(theirs, given), truth, given, label)


def _require_torchs(mine: Run, twin: Run, truth: nn.Module, given: Any, label: str) -> None:
    """As torch's, or in float32 as near to what float64 gives: torch's CTCLoss is off by 5e-5 itself."""
    dtype = mine.outputs[0].dtype
    try:
        require_same(mine, twin, RTOL.get(dtype, RTOL[torch.float32]), label)
    except AssertionError:
        if dtype is not torch.float32:
            raise
        require_no_farther(mine, twin, run(truth.double(), given, Tensor.double), label)


@every_module
def test_every_node_is_handwritten_or_a_view_and_calls_no_backward(entry: Entry, many: int | None) -> None:
    for label, _, ours, given in pairs(entry, torch.float64, many):
        arguments = Arguments(given)
        roots = [each for each in call(ours, arguments) if each.requires_grad]
        foreign = [node for node in nodes(roots) if kind(node) in ("native", "opaque")]
        assert not foreign, f"{label}: {describe(foreign)}"
        wanted = [*arguments.leaves.values(), *ours.parameters()]
        if roots and wanted:
            with audit() as found:
                run_backward(roots, wanted, cotangents(roots))
            assert not found.breaches, f"{label}: {found.breaches}"


@every_module
def test_any_layout_of_inputs_and_gradients_is_taken(entry: Entry, many: int | None) -> None:
    for label, theirs, ours, given in pairs(entry, torch.float64, many):
        twin = theirs if entry.lazy else copy.deepcopy(theirs)
        try:
            expected = run(theirs, given, spread)
        except RuntimeError:  # torch's own NLLLoss of images wants contiguous ones
            expected = run(twin, given)
        require_same(run(ours, given, spread, spread), expected, RTOL[torch.float64], label)


@every_module
def test_memory_format_follows_torchs(entry: Entry, many: int | None) -> None:
    def innermost(tensor: Tensor) -> Tensor:
        formats = {4: torch.channels_last, 5: torch.channels_last_3d}
        return tensor.clone(memory_format=formats.get(tensor.dim(), torch.preserve_format))

    for label, theirs, ours, given in pairs(entry, torch.float32, many):
        for each in (ours, theirs):
            for parameter in each.parameters():
                parameter.data = innermost(parameter.data)
        truth = theirs if entry.lazy else copy.deepcopy(theirs)
        mine = run(ours, given, innermost)
        try:
            twin = run(theirs, given, innermost)
        except RuntimeError:  # torch's own NLLLoss of images wants contiguous ones
            twin = run(truth, given)
        _require_torchs(mine, twin, truth, given, label)
        for a, b in zip(mine.outputs, twin.outputs, strict=True):
            assert _formats(a) >= _formats(b), f"{label}: {a.stride()} for {b.stride()}"


def _formats(tensor: Tensor) -> set[torch.memory_format]:
    known = {4: torch.channels_last, 5: torch.channels_last_3d}
    own = known.get(tensor.dim())
    return {own} if own is not None and tensor.is_contiguous(memory_format=own) else set()


@every_module
def test_repr_state_pickle_and_deepcopy_are_torchs(entry: Entry, many: int | None) -> None:
    for label, theirs, ours, given in pairs(entry, torch.float64, many):
        assert repr(ours) == repr(theirs), label
        assert list(ours.state_dict()) == list(theirs.state_dict()), label
        for key, value in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[key], value) or value.isnan().any(), f"{label}: {key}"
        theirs.load_state_dict(ours.state_dict())
        expected = run(copy.deepcopy(ours), given)
        for other in (_pickled(ours), copy.deepcopy(ours)):
            assert type(other) is type(ours), label
            require_same(run(other, given), expected, 0.0, label)


def _pickled(module: nn.Module) -> nn.Module:
    try:
        return pickle.loads(pickle.dumps(module))
    except (AttributeError, pickle.PicklingError):  # a sample's local function, no more picklable in torch's
        return copy.deepcopy(module)


@every_module
def test_errors_are_torchs(entry: Entry) -> None:
    for each in entry.errors():
        sample = each.module_error_input
        if each.error_on is ModuleErrorEnum.CONSTRUCTION_ERROR:
            with pytest.raises(each.error_type, match=each.error_regex):
                build(entry.ours, sample, torch.float64, True)
            continue
        # A weight of another dtype is an error of its own, and stays so.
        dtype = None if "weight" in sample.constructor_input.kwargs else torch.float64
        # torch's regular expressions are not all regular: the words of torch's own error are the measure.
        module, twin = (build(cls, sample, dtype, True) for cls in (entry.ours, entry.theirs))
        with pytest.raises(each.error_type) as expected:
            call(twin, Arguments(sample.forward_input))
        with pytest.raises(each.error_type, match=re.escape(str(expected.value).split("\n")[0])):
            call(module, Arguments(sample.forward_input))


@every_class
def test_gradcheck_and_gradgradcheck(entry: Entry, few: int | None) -> None:
    for label, _, ours, given in pairs(entry, torch.float64, few):
        function, values = _plain(ours, given)
        if not values or any(each.isnan().any() for each in values):  # torch's sample of KLDivLoss
            continue
        if any(each.isnan().any() for each in _roots(function, values)):  # and of LPPool: (-1)^1.5
            continue
        if entry.name == "CTCLoss":  # as torch defines its gradient: of what log_softmax is given
            function = _after_log_softmax(function)
        assert torch.autograd.gradcheck(function, values, fast_mode=True), label
        if all(each.numel() for each in values):
            grads = [each.requires_grad_() for each in cotangents(_roots(function, values))]
            assert torch.autograd.gradgradcheck(function, values, grads, fast_mode=True), label


def _after_log_softmax(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *now: function(*(each.log_softmax(-1) for each in now))


def _roots(function: Callable[..., Any], values: tuple[Tensor, ...]) -> list[Tensor]:
    return [each.detach() for each in tensors(function(*values))]


def _plain(module: nn.Module, given: Any) -> tuple[Callable[..., Any], tuple[Tensor, ...]]:
    """The module as a function of its differentiable inputs and parameters, and their values."""
    module = copy.deepcopy(module)  # its buffers change with every call
    arguments = Arguments(given)
    names = [key for key, p in module.named_parameters() if p.requires_grad]
    values = (
        *arguments.leaves.values(),
        *(module.get_parameter(key).detach().clone().requires_grad_() for key in names),
    )
    leaves, rebuild = flatten((arguments.args, arguments.kwargs))
    places = [next((i for i, v in enumerate(values) if v is leaf), None) for leaf in leaves]
    state = {key: value.clone() for key, value in module.named_buffers()}

    def function(*now: Tensor) -> Any:
        torch.manual_seed(1)
        args, kwargs = rebuild(
            iter([leaf if at is None else now[at] for at, leaf in zip(places, leaves, strict=True)])
        )
        parameters = dict(zip(names, now[len(now) - len(names) :], strict=True))
        buffers = {key: value.clone() for key, value in state.items()}
        outputs = torch.func.functional_call(module, {**parameters, **buffers}, args, kwargs)
        found = tensors(outputs)
        return tuple(each for each in found if each.is_floating_point())

    return function, values


@every_module
def test_func_grad(entry: Entry, many: int | None) -> None:
    compared = 0
    for label, theirs, ours, given in pairs(entry, torch.float64, many):
        try:
            expected = _func_grad(theirs, given)
        except Exception:  # torch's own cannot
            continue
        compared += 1
        if expected is not None:
            actual = _func_grad(ours, given)
            assert actual is not None, label
            require_tensors(dict(enumerate(actual)), dict(enumerate(expected)), RTOL[torch.float64], label)
    if not compared:
        pytest.skip("torch's own takes torch.func.grad on none of its samples")


def _func_grad(module: nn.Module, given: Any) -> tuple[Tensor, ...] | None:
    function, values = _plain(module, given)
    if not values:
        return None

    def loss(*now: Tensor) -> Tensor:
        outputs = function(*now)
        return sum((a * b).sum() for a, b in zip(outputs, cotangents(list(outputs)), strict=True))

    return torch.func.grad(loss, tuple(range(len(values))))(*values)


@every_module
def test_vmap(entry: Entry, few: int | None) -> None:
    compared = 0
    for label, theirs, ours, given in pairs(entry, torch.float64, few):
        try:
            expected = _mapped(theirs, given)
        except Exception:  # torch's own cannot be mapped
            continue
        compared += 1
        if expected is None:
            continue
        actual = _mapped(ours, given)
        if not entry.random and not getattr(ours, "dropout", 0):
            require_tensors(dict(enumerate(actual)), dict(enumerate(expected)), RTOL[torch.float64], label)
    if not compared:
        pytest.skip("torch's own can be mapped on none of its samples")


def _mapped(module: nn.Module, given: Any) -> tuple[Tensor, ...] | None:
    """Per-sample gradients of two samples: a vmap over a grad."""
    function, values = _plain(module, given)
    if not values:
        return None

    def loss(*now: Tensor) -> Tensor:
        outputs = function(*now)  # each weighted apart: the sum of a norm's squares has no gradient
        return sum((a * a * b).sum() for a, b in zip(outputs, cotangents(list(outputs)), strict=True))

    both = [torch.stack((each, each * 0.9)).detach() for each in values]
    return torch.vmap(torch.func.grad(loss, tuple(range(len(values)))), randomness="same")(*both)


@every_module
def test_autocast(entry: Entry, many: int | None) -> None:
    for label, theirs, ours, given in pairs(entry, torch.float32, many):
        try:
            with torch.autocast("cpu", torch.bfloat16):
                twin = run(copy.deepcopy(theirs), given)
        except RuntimeError:  # torch's own has no bfloat16 kernel here
            continue
        truth = run(theirs, given)
        with torch.autocast("cpu", torch.bfloat16):
            mine = run(ours, given)
        assert [each.dtype for each in mine.outputs] == [each.dtype for each in twin.outputs], label
        for a, b, c in zip(mine.outputs, twin.outputs, truth.outputs, strict=True):
            if c.numel() and c.is_floating_point():
                size = float(c.abs().nan_to_num(0, 0, 0).max())
                allowed = 3 * _gap(b, c) + 1e-2 * size
                assert _gap(a, c) <= allowed, f"{label}: off by {_gap(a, c):.1e}, torch's {_gap(b, c):.1e}"
        for key, b in twin.gradients.items():
            a, c = mine.gradients[key], truth.gradients[key]
            assert (a is None) == (b is None), f"{label}: gradient of {key}"
            if a is not None:
                assert a.dtype is b.dtype, f"{label}: gradient of {key} is {a.dtype}, torch's {b.dtype}"
                largest = max(_size(g) for g in truth.gradients.values() if g is not None)
                allowed = 3 * _gap(b, c) + 2e-2 * largest
                assert _gap(a, c) <= allowed, f"{label}: gradient of {key} off by {_gap(a, c):.1e}"


def _gap(a: Tensor, b: Tensor) -> float:
    return _size(torch.where(a.isfinite() & b.isfinite(), a.double() - b.double(), 0.0))


def _size(tensor: Tensor) -> float:
    return float(tensor.abs().nan_to_num(0, 0, 0).max()) if tensor.numel() else 0.0


@every_class
def test_compile(entry: Entry, traced: int | None) -> None:
    for label, theirs, ours, given in pairs(entry, torch.float64, traced):
        torch._dynamo.reset()
        expected = run(copy.deepcopy(theirs), given)
        compiled: Any = torch.compile(ours, backend="aot_eager")
        arguments = Arguments(given)
        outputs = call(compiled, arguments)
        roots = [each for each in outputs if each.requires_grad]
        wanted = {**arguments.leaves, **{key: p for key, p in ours.named_parameters() if p.requires_grad}}
        if not roots:
            continue
        gradients = torch.autograd.grad(roots, list(wanted.values()), cotangents(roots), allow_unused=True)
        if not entry.random:
            known = {key: each for key, each in expected.gradients.items() if each is not None}
            found = {key: each for key, each in zip(wanted, gradients, strict=True) if key in known}
            require_tensors(found, known, RTOL[torch.float64], label)
