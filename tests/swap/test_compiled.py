"""Converted modules and the mode under `torch.compile`, where graphs begin and break as a user's do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence

import bpkit

pytestmark = pytest.mark.filterwarnings("ignore")

INPLACE = {
    "ReLU": (),
    "ReLU6": (),
    "LeakyReLU": (),
    "RReLU": (),
    "ELU": (),
    "CELU": (),
    "SELU": (),
    "SiLU": (),
    "Mish": (),
    "Hardswish": (),
    "Hardtanh": (),
    "Hardsigmoid": (),
    "Threshold": (0.1, 2.0),
}


def filled(x: Tensor) -> Tensor:
    x.masked_fill_(x < 0, 0.5)
    return x * 2


def sliced(x: Tensor) -> Tensor:
    x[:, 1:].mul_(3)
    return x


# Each written so that it is the same function with a copy of its input.
IN_THE_MODE: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid_": lambda x: x.sigmoid_(),
    "exp_": lambda x: x.exp_(),
    "clamp_": lambda x: x.clamp_(0, 2),
    "mul_": lambda x: x.mul_(5),
    "masked_fill_": filled,
    "of a slice": sliced,
    "relu_": lambda x: torch.relu_(x),
    "cat of constants": lambda x: torch.cat([x.detach(), 2 * x.detach()], -1) * x.sum(),
    "norm of a result": lambda x: (x - 1).norm(dim=-1),
    "a mask, which breaks the graph": lambda x: x[x > 0] * 2,
    "attention": lambda x: F.scaled_dot_product_attention(x, x, 2 * x, is_causal=True),
}


def start() -> Tensor:
    return torch.tensor([[-2.0, 1.0, 3.0], [0.5, -0.3, 2.0]], dtype=torch.float64, requires_grad=True)


def gradient(output: Tensor, x: Tensor) -> Tensor:
    weights = torch.linspace(1, 2, output.numel(), dtype=output.dtype).reshape(output.shape)
    return torch.autograd.grad((output * weights).sum(), x)[0]


@pytest.mark.parametrize("name", INPLACE)
def test_an_inplace_layer_writes_to_the_input_of_a_graph(name: str) -> None:
    """Torch 2.13 forgets the backward of a Function that does so: the gradient was the identity's."""
    torch._dynamo.reset()
    layer = bpkit.convert(getattr(nn, name)(*INPLACE[name], inplace=True)).eval()
    x = start()
    ours = gradient(torch.compile(layer, backend="aot_eager")(x * 1), x)
    torch.testing.assert_close(ours, gradient(getattr(nn, name)(*INPLACE[name]).eval()(x * 1), x))


@pytest.mark.parametrize("name", IN_THE_MODE)
def test_the_mode_compiled(name: str) -> None:
    torch._dynamo.reset()
    x = start()
    with bpkit.handwritten():
        ours = gradient(torch.compile(IN_THE_MODE[name], backend="aot_eager")(x * 1), x)
    torch.testing.assert_close(ours, gradient(IN_THE_MODE[name](x * 1), x))


def test_constants_under_autocast_are_constants_too() -> None:
    torch._dynamo.reset()
    x = torch.randn(3, 4, requires_grad=True)
    with bpkit.handwritten(), torch.autocast("cpu", torch.bfloat16):
        ours = torch.compile(IN_THE_MODE["cat of constants"], backend="aot_eager")(x)
    torch.testing.assert_close(ours, IN_THE_MODE["cat of constants"](x))


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_a_packed_sequence_breaks_the_graph_and_no_more(name: str) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    layer = bpkit.convert(getattr(nn, name)(3, 4))
    x = torch.randn(5, 2, 3, requires_grad=True)

    def run(x: Tensor) -> Tensor:
        return layer(pack_padded_sequence(x, torch.tensor([5, 3])))[0].data

    ours = gradient(torch.compile(run, backend="aot_eager")(x), x)
    torch.testing.assert_close(ours, gradient(run(x), x))


def test_nested_tensors_are_refused_with_the_remedy() -> None:
    nested = torch.nested.nested_tensor([torch.randn(2, 4), torch.randn(3, 4)], layout=torch.jagged)
    for layer in (nn.Linear(4, 3), nn.LayerNorm(4), nn.GELU(), nn.Softmax(-1)):
        with pytest.raises(NotImplementedError, match="nested tensors; leave the module to torch"):
            bpkit.convert(layer)(nested)
