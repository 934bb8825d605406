"""Functions and tensor operators under `handwritten()`, on the samples of torch's own `op_db`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.opinfo.core import OpInfo, SampleInput

import bpkit
from bpkit.core.graph import kind, nodes
from bpkit.core.purity import audit, run_backward
from bpkit.core.structure import flatten, tensors
from bpkit.swap.mode import REPLACEMENTS, SPELT
from bpkit.verification.compare import relative_error
from tests.conformance.pair import cotangents, describe, thinned

pytestmark = pytest.mark.filterwarnings("ignore")

RTOL = 1e-11
# A gradient of less than so much of the largest tensor at hand has cancelled (torch's samples have norms over
# two values and over one, whose true gradients are tiny and zero), and is compared to so much of that.
CANCELLED = 1e-3
# Of the samples of one operator this many, spread over all of them, where each run is slow.
FEW = 6


def _answered(info: OpInfo) -> bool:
    if info.name.startswith("nn.functional."):
        return hasattr(torch.nn.functional, info.name[14:])
    return info.op in REPLACEMENTS or getattr(info.op, "__name__", "") in SPELT


# The nuclear norm has no hand-written gradient: torch's own runs.
LEFT = {("norm", "nuc")}
OPERATORS = [
    info
    for info in op_db
    if _answered(info)
    and info.supports_autograd
    and torch.float64 in info.dtypes
    and (info.name, info.variant_test_name) not in LEFT
]


def _id(info: OpInfo) -> str:
    return f"{info.name}-{info.variant_test_name}" if info.variant_test_name else info.name


every_operator = pytest.mark.parametrize("info", OPERATORS, ids=_id)


def samples(info: OpInfo, most: int | None = None) -> Iterator[tuple[str, SampleInput]]:
    found = list(info.sample_inputs("cpu", torch.float64, requires_grad=True))
    for index, sample in enumerate(thinned(found, most)):
        yield f"sample {index}: {sample.summary()}", sample


class Call:
    """One call on copies of a sample's tensors."""

    def __init__(self, info: OpInfo, sample: SampleInput, *, handwritten: bool) -> None:
        leaves, rebuild = flatten((sample.input, sample.args, sample.kwargs))
        copies = [
            each.detach().clone().requires_grad_(each.requires_grad) if isinstance(each, Tensor) else each
            for each in leaves
        ]
        self.wanted = [each for each in copies if isinstance(each, Tensor) and each.requires_grad]
        input, args, kwargs = rebuild(iter(copies))
        torch.manual_seed(1)
        if handwritten:
            with bpkit.handwritten():
                output = info.op(input, *args, **kwargs)
        else:
            output = info.op(input, *args, **kwargs)
        self.outputs = tensors(sample.output_process_fn_grad(output))
        self.roots = [each for each in self.outputs if each.requires_grad]

    def gradients(self) -> tuple[Tensor | None, ...]:
        if not self.roots or not self.wanted:
            return ()
        return torch.autograd.grad(
            self.roots, self.wanted, cotangents(self.roots), retain_graph=True, allow_unused=True
        )

    def breaches(self) -> list[str]:
        """What its backward calls and must not."""
        if not self.roots or not self.wanted:
            return []
        with audit() as found:
            run_backward(self.roots, self.wanted, cotangents(self.roots))
        return found.breaches


@every_operator
def test_values_and_gradients_are_torchs_from_a_graph_of_ours(info: OpInfo) -> None:
    """Every node is hand-written or a view, and no backward calls one of torch's."""
    for label, sample in samples(info):
        ours, theirs = Call(info, sample, handwritten=True), Call(info, sample, handwritten=False)
        _same(label, ours.outputs, theirs.outputs)
        largest = max((_size(each) for each in theirs.outputs), default=0.0)
        _same(f"{label}: gradient", ours.gradients(), theirs.gradients(), largest)
        foreign = [node for node in nodes(ours.roots) if kind(node) in ("native", "opaque")]
        assert not foreign, f"{label}: {describe(foreign)}"
        if info.name != "__getitem__":  # slices and numbers are torch's views: back by its slice_backward
            assert not ours.breaches(), f"{label}: {ours.breaches()}"


def _same(
    label: str, ours: tuple[Tensor | None, ...], theirs: tuple[Tensor | None, ...], largest: float = 0.0
) -> None:
    assert len(ours) == len(theirs), label
    largest = max([largest, *(_size(each) for each in theirs)])
    for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if a is None or b is None:
            other = a if b is None else b
            assert other is None or not other.any(), f"{label} {index}: one is None"
            continue
        assert a.shape == b.shape, f"{label} {index}: {a.shape} for {b.shape}"
        assert a.dtype is b.dtype, f"{label} {index}: {a.dtype} for {b.dtype}"
        if a.is_complex():
            a, b = torch.view_as_real(a.resolve_conj()), torch.view_as_real(b.resolve_conj())
        error = relative_error(a.to_dense(), b.to_dense(), scale=CANCELLED * largest)
        assert error <= RTOL, f"{label} {index}: relative error {error:.1e}"


def _size(tensor: Tensor | None) -> float:
    if tensor is None or not tensor.numel() or tensor.layout is not torch.strided:
        return 0.0
    return float(tensor.detach().abs().nan_to_num(0, 0, 0).max())


@every_operator
def test_gradgradcheck(info: OpInfo, request: pytest.FixtureRequest) -> None:
    if not info.supports_gradgrad:
        pytest.skip("torch's own is not differentiable twice")
    every = request.config.getoption("--every-sample")
    for label, sample in samples(info, None if every else FEW):
        function, values = _plain(info, sample)
        outputs = function(*values)
        if values and outputs and all(each.numel() and each.isfinite().all() for each in (*values, *outputs)):
            assert torch.autograd.gradgradcheck(
                function, values, _differentiable(cotangents(list(outputs))), fast_mode=True
            ), label


@every_operator
def test_func_grad_and_vmap(info: OpInfo) -> None:
    compared = 0
    for label, sample in samples(info, FEW):
        function, values = _plain(info, sample)
        outputs = function(*values) if values else ()
        if not outputs:
            continue
        largest = max(map(_size, outputs))
        where = tuple(range(len(values)))
        for run in (_func_grad(function, where), _mapped(function, where)):
            try:
                expected = run(False, *values)
            except Exception:  # torch's own cannot
                continue
            _same(label, run(True, *values), expected, largest)
            compared += 1
    if not compared:
        pytest.skip("torch's own takes torch.func on none of its samples")


def _differentiable(grads: list[Tensor]) -> list[Tensor]:
    return [each.requires_grad_() for each in grads]


def _plain(info: OpInfo, sample: SampleInput) -> tuple[Callable[..., tuple[Tensor, ...]], tuple[Tensor, ...]]:
    """The call as a function of its differentiable tensors, and their values."""
    leaves, rebuild = flatten((sample.input, sample.args, sample.kwargs))
    places = [i for i, each in enumerate(leaves) if isinstance(each, Tensor) and each.requires_grad]
    values = tuple(leaves[i].detach().clone().requires_grad_() for i in places)

    def function(*now: Tensor, handwritten: bool = True) -> tuple[Tensor, ...]:
        torch.manual_seed(1)
        current = list(leaves)
        for place, value in zip(places, now, strict=True):
            current[place] = value
        input, args, kwargs = rebuild(iter(current))
        if handwritten:
            with bpkit.handwritten():
                output = info.op(input, *args, **kwargs)
        else:
            output = info.op(input, *args, **kwargs)
        found = tensors(sample.output_process_fn_grad(output))
        return tuple(each for each in found if each.is_floating_point() or each.is_complex())

    return function, values


def _weighted_squares(function: Callable[..., tuple[Tensor, ...]]) -> Callable[..., Tensor]:
    def loss(handwritten: bool, *now: Tensor) -> Tensor:
        squares = [(each * each.conj()).real for each in function(*now, handwritten=handwritten)]
        # Each weighted apart: the sum of a norm's squares has no gradient.
        return sum((a * b).sum() for a, b in zip(squares, cotangents(squares), strict=True))

    return loss


def _func_grad(function: Callable[..., Any], places: tuple[int, ...]) -> Callable[..., Any]:
    loss = _weighted_squares(function)
    return lambda handwritten, *values: torch.func.grad(lambda *now: loss(handwritten, *now), places)(*values)


def _mapped(function: Callable[..., Any], places: tuple[int, ...]) -> Callable[..., Any]:
    """A vmap over that, of two samples."""
    gradient = _func_grad(function, places)

    def run(handwritten: bool, *values: Tensor) -> Any:
        both = [torch.stack((each, each * 0.9)).detach() for each in values]
        return torch.vmap(lambda *now: gradient(handwritten, *now), randomness="same")(*both)

    return run
