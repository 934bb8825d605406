"""RNNCell: h′ = φ(x W_ihᵀ + b_ih + h W_hhᵀ + b_hh), φ = tanh or ReLU.

With η = ∂L/∂h′, and φ′ from the output alone,

    δz = η (1 - h′²)  or  η [h′ > 0]

and the rest as in `cell.py` with δa = δe = δz. Saved: the inputs and h′.
Source: Elman, "Finding structure in time", 1990.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from bpkit.core.function import Function
from bpkit.core.fuse import formula
from bpkit.core.holomorphic import conjugates
from bpkit.core.mask import nonzero
from bpkit.core.spec import LayerSpec, Sample, randn
from bpkit.layers.cell import Cell, Gradients, products, samples, saved_bytes


class TanhRNNCellFunction(Function):
    """`(x [B, I], h [B, H], w_ih, w_hh, b_ih, b_hh)` to h′ `[B, H]`."""

    autocast = {"cpu": "lower", "cuda": "lower"}

    @staticmethod
    def forward(
        input: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None, b_hh: Tensor | None
    ) -> Tensor:
        return torch.tanh(linear(input, w_ih, b_ih) + linear(h, w_hh, b_hh))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:4], output)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Gradients:
        *inputs, output = conjugates(ctx.saved_tensors)
        return _rnn_gradients(ctx.needs_input_grad, inputs, _tanh(grad_output, output))


class ReLURNNCellFunction(TanhRNNCellFunction):
    """The same with φ = ReLU."""

    @staticmethod
    def forward(
        input: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None, b_hh: Tensor | None
    ) -> Tensor:
        return torch.relu(linear(input, w_ih, b_ih) + linear(h, w_hh, b_hh))

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Gradients:
        *inputs, output = conjugates(ctx.saved_tensors)
        return _rnn_gradients(ctx.needs_input_grad, inputs, grad_output * nonzero(output))


@formula
def _tanh(grad_output: Tensor, output: Tensor) -> Tensor:
    return grad_output * (1 - output * output)


def _rnn_gradients(need: tuple[bool, ...], inputs: list[Tensor], dz: Tensor) -> Gradients:
    input, h, w_ih, w_hh = inputs
    return (
        dz @ w_ih if need[0] else None,
        dz @ w_hh if need[1] else None,
        *products(need[2:], input, h, dz, dz),
    )


class RNNCell(Cell, nn.RNNCell):
    """`torch.nn.RNNCell` with a hand-written backward."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        new = self._run(input, None if hx is None else (hx,), 1) if self.nonlinearity in _RNN else None
        result: Tensor = super().forward(input, hx) if new is None else new[0]
        return result

    def _step(self, input: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        return (_RNN[self.nonlinearity].call(input, *states, *self._weights[:4]),)


_RNN = {"tanh": TanhRNNCellFunction, "relu": ReLURNNCellFunction}


def _samples() -> Iterable[Sample]:
    yield from samples()
    yield Sample(args=(3, 4), kwargs={"nonlinearity": "relu"}, inputs=(randn(5, 3),), label="relu")


SPECS = (
    LayerSpec(
        name="RNNCell",
        module=RNNCell,
        reference=nn.RNNCell,
        samples=_samples,
        saves="inputs, new state",
        saved_bytes=saved_bytes(1),
        summary="one step of an RNN",
    ),
)
