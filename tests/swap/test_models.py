"""Whole models that somebody else wrote, converted in place, against themselves before."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bpkit
from bpkit.bench.models import HUGGING_FACE, MODELS, Subject, available, build
from bpkit.verification.compare import relative_error

pytestmark = pytest.mark.filterwarnings("ignore")

# A gradient this much smaller than the largest one is compared to that one: its true value may be zero.
NEGLIGIBLE = 1e-6
# What rounding alone may do, where torch with its batch permuted happens to round alike.
ROUNDING = {torch.float64: 1e-13, torch.float32: 1e-5}
# Whatever their dtype, these compute their loss in float32.
SINGLE = ("GPT-2", "Llama")
STEPS = 10

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
MODES = pytest.mark.parametrize("mode", [nullcontext, bpkit.handwritten], ids=["converted", "handwritten"])
every_model = pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=pytest.mark.skipif(name not in available(), reason="transformers is not installed")
        )
        for name in (*MODELS, *HUGGING_FACE)
    ],
)

Mode = Callable[[], AbstractContextManager[Any]]


def evaluate(subject: Subject, model: nn.Module, mode: Mode = nullcontext) -> dict[str, Tensor]:
    """The loss and every gradient there is."""
    model.zero_grad()
    with mode():
        loss = subject.loss(model)
    loss.backward()
    gradients = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **gradients}


def permuted(subject: Subject) -> Subject:
    """The same samples in another order: torch's distance from itself is what that changes."""
    size = len(next(iter(subject.batch.values())))
    order = torch.randperm(size, generator=torch.Generator().manual_seed(3))
    return Subject(subject.model, {key: value[order] for key, value in subject.batch.items()})


def distances(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    assert actual.keys() == expected.keys()
    sizes = {key: float(each.abs().max()) for key, each in expected.items()}
    largest = max(size for key, size in sizes.items() if key != "loss")
    return {
        key: relative_error(actual[key], expected[key], scale=largest if size < NEGLIGIBLE * largest else 0.0)
        for key, size in sizes.items()
    }


def train(subject: Subject, model: nn.Module, mode: Mode = nullcontext) -> Tensor:
    """The losses of ten steps."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        with mode():
            loss = subject.loss(model)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


@every_model
@DTYPES
@MODES
def test_loss_and_gradients_are_those_of_the_model_before(name: str, dtype: torch.dtype, mode: Mode) -> None:
    subject = build(name, dtype)
    expected = evaluate(subject, subject.model)
    itself = distances(evaluate(permuted(subject), subject.model), expected)
    converted = bpkit.convert(copy.deepcopy(subject.model))
    for key, error in distances(evaluate(subject, converted, mode), expected).items():
        allowed = max(10 * itself[key], ROUNDING[torch.float32 if name in SINGLE else dtype])
        assert error <= allowed, f"{key}: {error:.1e}, torch from itself {itself[key]:.1e}"


@every_model
@DTYPES
@MODES
def test_ten_steps_stay_as_close_as_torch_to_itself(name: str, dtype: torch.dtype, mode: Mode) -> None:
    subject = build(name, dtype)
    expected = train(subject, copy.deepcopy(subject.model))
    itself = relative_error(train(permuted(subject), copy.deepcopy(subject.model)), expected)
    actual = train(subject, bpkit.convert(copy.deepcopy(subject.model)), mode)
    error = relative_error(actual, expected)
    allowed = max(10 * itself, ROUNDING[torch.float32 if name in SINGLE else dtype])
    assert error <= allowed, f"{error:.1e}, torch from itself {itself:.1e}"


@every_model
def test_nothing_is_left_but_what_has_no_torch_twin(name: str) -> None:
    model = bpkit.convert(build(name).model)
    left = bpkit.converted(model).left
    assert not [reason for reason in left.values() if "torch.nn" in reason or "twin" in reason], left


@every_model
def test_inside_handwritten_every_node_is(name: str) -> None:
    subject = build(name)
    bpkit.convert(subject.model)
    with bpkit.handwritten():
        loss = subject.loss()
    counted = bpkit.coverage(loss)
    assert counted.share == 1.0, str(counted)


@every_model
def test_the_state_dict_goes_both_ways(name: str) -> None:
    subject, other = build(name), build(name)
    bpkit.convert(subject.model)
    assert list(subject.model.state_dict()) == list(other.model.state_dict())
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.mul_(0.5)
    subject.model.load_state_dict(other.model.state_dict())
    other.model.load_state_dict(subject.model.state_dict())
    torch.testing.assert_close(subject.loss(), subject.loss(other.model), rtol=1e-5, atol=1e-5)


@every_model
@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_stay_converted(name: str, again: Callable[[nn.Module], nn.Module]) -> None:
    subject = build(name, torch.float64)
    bpkit.convert(subject.model)
    other = again(subject.model)
    assert bpkit.converted(other) == bpkit.converted(subject.model)
    assert max(distances(evaluate(subject, other), evaluate(subject, subject.model)).values()) == 0.0


@every_model
def test_reverted_it_is_the_model_before(name: str) -> None:
    subject = build(name, torch.float64)
    before = {path: type(module) for path, module in subject.model.named_modules()}
    expected = evaluate(subject, subject.model)
    bpkit.revert(bpkit.convert(subject.model))
    assert {path: type(module) for path, module in subject.model.named_modules()} == before
    assert max(distances(evaluate(subject, subject.model), expected).values()) <= 1e-13


@pytest.mark.skipif("BERT" not in available(), reason="transformers is not installed")
@pytest.mark.parametrize("name", HUGGING_FACE)
def test_save_pretrained_and_from_pretrained_are_untouched(name: str, tmp_path: Path) -> None:
    subject = build(name)
    bpkit.convert(subject.model)
    expected = subject.loss().detach()
    subject.model.save_pretrained(tmp_path)
    loaded = type(subject.model).from_pretrained(tmp_path).train()
    assert not bpkit.converted(loaded).converted
    torch.testing.assert_close(subject.loss(loaded), expected)
    torch.testing.assert_close(subject.loss(bpkit.convert(loaded)), expected)
