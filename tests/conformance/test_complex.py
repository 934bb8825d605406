"""Complex tensors, wherever torch takes them: modules on made-up inputs, operators on torch's own samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing._internal.common_methods_invocations import OpInfo, op_db

import bpkit
import bpkit.nn
from bpkit.core.structure import flatten, tensors
from bpkit.swap.mode import REPLACEMENTS, SPELT
from bpkit.verification.compare import relative_error

pytestmark = pytest.mark.filterwarnings("ignore")

RTOL = 1e-11  # as in test_modules.py


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.complex128, generator=generator)


def sequences() -> tuple[Tensor, ...]:
    return (normal(5, 2, 3),)


MODULES: dict[str, tuple[tuple[Any, ...], tuple[Tensor, ...]]] = {
    "Linear": ((3, 4), (normal(2, 5, 3),)),
    "RNN": ((3, 4, 2), sequences()),
    "LSTM": ((3, 4), sequences()),
    "GRU": ((3, 4), sequences()),
    "RNNCell": ((3, 4), (normal(2, 3),)),
    "LSTMCell": ((3, 4), (normal(2, 3),)),
    "GRUCell": ((3, 4), (normal(2, 3),)),
    "Conv1d": ((3, 4, 2), (normal(2, 3, 5),)),
    "Conv2d": ((3, 4, 2), (normal(2, 3, 4, 4),)),
    "ConvTranspose1d": ((3, 4, 2), (normal(2, 3, 5),)),
    "RMSNorm": ((4,), (normal(3, 4),)),
    "Tanh": ((), (normal(3, 4),)),
    "Sigmoid": ((), (normal(3, 4),)),
    "Softsign": ((), (normal(3, 4),)),
    "Tanhshrink": ((), (normal(3, 4),)),
    "Fold": (((2, 2), 2), (normal(1, 4, 1),)),
    "Unfold": ((2,), (normal(1, 2, 3, 3),)),
    "ZeroPad2d": ((1,), (normal(1, 2, 3, 3),)),
    "PairwiseDistance": ((), (normal(3, 4), normal(3, 4, seed=1))),
    "L1Loss": ((), (normal(3, 4), normal(3, 4, seed=1))),
    "PoissonNLLLoss": ((False,), (normal(3, 4), normal(3, 4, seed=1))),
}


def gradients(outputs: list[Tensor], leaves: list[Tensor]) -> tuple[Tensor | None, ...]:
    roots = [each for each in outputs if each.requires_grad]
    if not roots or not leaves:
        return ()
    directions = [torch.linspace(0.5, 1.5, each.numel()).reshape(each.shape).to(each) for each in roots]
    turned = [each * (1 - 0.8j) if each.is_complex() else each for each in directions]
    return torch.autograd.grad(roots, leaves, turned, allow_unused=True)


def require_equal(ours: tuple[Tensor | None, ...], theirs: tuple[Tensor | None, ...], label: str) -> None:
    largest = max([0.0, *(float(each.abs().max()) for each in theirs if each is not None and each.numel())])
    for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if a is None or b is None:  # where it is always zero torch may have none
            assert not any(each is not None and each.any() for each in (a, b)), f"{label}: gradient {index}"
            continue
        a, b = (torch.view_as_real(each.resolve_conj()) if each.is_complex() else each for each in (a, b))
        error = relative_error(a, b, scale=1e-3 * largest)
        assert error <= RTOL, f"{label}: gradient {index} off by {error:.1e}"


@pytest.mark.parametrize("name", MODULES)
def test_a_module_of_complex_tensors(name: str) -> None:
    args, inputs = MODULES[name]
    torch.manual_seed(0)
    theirs: nn.Module = getattr(nn, name)(*args).to(torch.complex128)
    ours: nn.Module = getattr(bpkit.nn, name)(*args).to(torch.complex128)
    ours.load_state_dict(theirs.state_dict())
    found = []
    for module in (ours, theirs):
        leaves = [each.clone().requires_grad_() for each in inputs]
        found.append(gradients(tensors(module(*leaves)), [*leaves, *module.parameters()]))
    require_equal(*found, name)


def answered(info: OpInfo) -> bool:
    functional = info.name.startswith("nn.functional.")
    known = info.op in REPLACEMENTS or getattr(info.op, "__name__", "") in SPELT
    return (functional or known) and info.supports_autograd and torch.complex128 in info.dtypes


def name_of(info: OpInfo) -> str:
    return f"{info.name}-{info.variant_test_name}" if info.variant_test_name else info.name


def run(op: Callable[..., Any], sample: Any) -> tuple[Tensor | None, ...]:
    leaves, rebuild = flatten((sample.input, sample.args, sample.kwargs))
    copies = [
        each.detach().clone().requires_grad_(each.requires_grad) if isinstance(each, Tensor) else each
        for each in leaves
    ]
    input, args, kwargs = rebuild(iter(copies))
    torch.manual_seed(1)
    outputs = tensors(sample.output_process_fn_grad(op(input, *args, **kwargs)))
    return gradients(outputs, [each for each in copies if isinstance(each, Tensor) and each.requires_grad])


OPERATORS = [info for info in op_db if answered(info)]


@pytest.mark.parametrize("info", OPERATORS, ids=name_of)
def test_an_operator_of_complex_tensors(info: OpInfo) -> None:
    for index, sample in enumerate(info.sample_inputs("cpu", torch.complex128, requires_grad=True)):
        theirs = run(info.op, sample)
        with bpkit.handwritten():
            ours = run(info.op, sample)
        require_equal(ours, theirs, f"sample {index}, {sample.summary()}")
