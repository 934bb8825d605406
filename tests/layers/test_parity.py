"""Where samples do not reach: empty batches, odd shapes, memory formats, and torch's own words for errors."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bpkit.functional
import bpkit.nn

BOTH = ((bpkit.nn, bpkit.functional), (nn, F))


def both(call: Any) -> list[Any]:
    """What `call(nn, functional)` gives with bpkit's and with torch's."""
    results = []
    for pair in BOTH:
        torch.manual_seed(0)
        results.append(call(*pair))
    return results


def gradients(output: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    weights = torch.linspace(-1, 2, output.numel(), dtype=output.dtype).reshape(output.shape)
    return torch.autograd.grad(output, inputs, weights)


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 5), (4, 3, 0)])
@pytest.mark.parametrize("arguments", [{}, {"affine": False}, {"track_running_stats": False}], ids=str)
def test_batchnorm_takes_an_empty_batch(shape: tuple[int, ...], arguments: dict[str, bool]) -> None:
    def call(nn: Any, fn: Any) -> list[Tensor]:
        module, x = nn.BatchNorm1d(3, **arguments), torch.zeros(shape, requires_grad=True)
        module(x).sum().backward()
        assert x.grad is not None
        return [x.grad, *(each.grad for each in module.parameters()), *module.buffers()]

    ours, theirs = both(call)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("shape", [(5,), (1, 5), (3, 5), (1,)])
def test_linear_broadcasts_any_bias(shape: tuple[int, ...]) -> None:
    def call(nn: Any, fn: Any) -> Any:
        x, weight, bias = (torch.randn(size, requires_grad=True) for size in ((3, 4), (5, 4), shape))
        return gradients(fn.linear(x, weight, bias), x, weight, bias)

    torch.testing.assert_close(*both(call))


IMAGES = {
    "conv": lambda nn: nn.Conv2d(3, 4, 3, padding=1),
    "max": lambda nn: nn.MaxPool2d(2),
    "max, overlapping": lambda nn: nn.MaxPool2d(3, 2, 1),
    "avg": lambda nn: nn.AvgPool2d(2),
    "avg, overlapping": lambda nn: nn.AvgPool2d(3, 2, 1),
    "batchnorm": lambda nn: nn.BatchNorm2d(3),
    "batchnorm, eval": lambda nn: nn.BatchNorm2d(3).eval(),
}
FORMATS = (torch.contiguous_format, torch.channels_last)


@pytest.mark.parametrize("grad_format", FORMATS, ids=str)
@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("make", IMAGES.values(), ids=IMAGES)
def test_outputs_and_gradients_keep_torchs_memory_format(
    make: Any, format: torch.memory_format, grad_format: torch.memory_format
) -> None:
    def call(nn: Any, fn: Any) -> tuple[Tensor, Tensor]:
        x = torch.randn(2, 3, 6, 8).contiguous(memory_format=format).requires_grad_()
        output = make(nn)(x)
        grad_output = torch.randn(output.shape).contiguous(memory_format=grad_format)
        return output, torch.autograd.grad(output, x, grad_output)[0]

    ours, theirs = both(call)
    torch.testing.assert_close(ours, theirs)
    assert [each.stride() for each in ours] == [each.stride() for each in theirs]


def test_an_empty_batch_can_be_differentiated_twice_through_a_convolution() -> None:
    def call(nn: Any, fn: Any) -> Any:
        x, weight = torch.zeros(0, 3, 5, 6, requires_grad=True), torch.ones(4, 3, 3, 3, requires_grad=True)
        return torch.autograd.grad(fn.conv2d(x, weight).sum(), (x, weight), create_graph=True)

    ours, theirs = both(call)
    assert [each.shape for each in ours] == [each.shape for each in theirs]


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "elu", "selu", "silu"])
def test_the_second_derivative_of_straight_lines_is_zeros(name: str) -> None:
    def call(nn: Any, fn: Any) -> Tensor:
        x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
        (first,) = torch.autograd.grad(getattr(fn, name)(x).sum(), x, create_graph=True)
        return torch.autograd.grad(first.sum(), x)[0]

    torch.testing.assert_close(*both(call))


@pytest.mark.parametrize(
    "name", ["relu", "leaky_relu", "elu", "selu", "silu", "sigmoid", "tanh", "softmax", "layer_norm"]
)
def test_signatures_are_torchs(name: str) -> None:
    ours, theirs = (
        [(each.name, each.kind, each.default) for each in inspect.signature(function).parameters.values()]
        for function in (getattr(bpkit.functional, name), getattr(F, name))
    )
    assert ours == theirs
    assert getattr(bpkit.functional, name).__name__ == name


x, image = torch.ones(4, 3), torch.ones(2, 3, 5, 6)
filters = torch.ones(4, 3, 3, 3)
three, four = torch.zeros(3), torch.zeros(4)
ERRORS = {
    "eps 0": lambda nn, fn: fn.batch_norm(x, None, None, training=True, eps=0.0),
    "eps negative": lambda nn, fn: fn.batch_norm(x, three, three, eps=-1.0),
    "no statistics": lambda nn, fn: fn.batch_norm(x, None, None),
    "one statistic": lambda nn, fn: fn.batch_norm(x, three, None, training=True),
    "statistics' size": lambda nn, fn: fn.batch_norm(x, four, four, training=True),
    "weight's size": lambda nn, fn: fn.batch_norm(x, None, None, four[:1], training=True),
    "no channels": lambda nn, fn: fn.batch_norm(three, three, three, training=True),
    "one value": lambda nn, fn: nn.BatchNorm1d(3)(x[:1]),
    "stride of 3": lambda nn, fn: fn.conv2d(image, filters, stride=(1, 2, 3)),
    "stride of 0": lambda nn, fn: fn.conv2d(image, filters, stride=()),
    "dilation of 3": lambda nn, fn: fn.conv2d(image, filters, dilation=(1, 1, 1)),
    "stride a float": lambda nn, fn: fn.conv2d(image, filters, None, 1.5),
    "window of 3": lambda nn, fn: fn.avg_pool2d(image, (1, 2, 3)),
    "no input": lambda nn, fn: fn.leaky_relu(),
    "unknown argument": lambda nn, fn: fn.relu(x, slope=1),
    "no tensor": lambda nn, fn: fn.sigmoid(3.0),
    "no axis": lambda nn, fn: fn.softmax(x, "a"),
    "p a string": lambda nn, fn: fn.dropout(x, "a"),
}


@pytest.mark.parametrize("call", ERRORS.values(), ids=ERRORS)
def test_errors_are_torchs(call: Any) -> None:
    errors = []
    for pair in BOTH:
        with pytest.raises(Exception) as caught:  # noqa: PT011 - compared below
            call(*pair)
        errors.append((caught.type, str(caught.value).split(" - got")[0]))
    assert errors[0] == errors[1]


def test_avg_pool_takes_an_empty_stride_for_the_windows_own() -> None:
    assert torch.equal(*both(lambda nn, fn: fn.avg_pool2d(image, 2, stride=())))
