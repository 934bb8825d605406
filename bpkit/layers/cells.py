"""RNNCell, LSTMCell, GRUCell: one step of a recurrent network.

The equations and their derivatives are those of `rnn.py`, `lstm.py` and `gru.py` at one step t, where
η_t and ε_t are the gradients of the cell's own outputs. With a = x W_ihᵀ + b_ih and e = h W_hhᵀ + b_hh,

    ∂L/∂x = δa W_ih     ∂L/∂W_ih = Σₙ δa_n ⊗ x_n     ∂L/∂b_ih = Σₙ δa_n          n: the batch
    ∂L/∂h = δe W_hh     ∂L/∂W_hh = Σₙ δe_n ⊗ h_n     ∂L/∂b_hh = Σₙ δe_n          (GRU: + δh u in ∂L/∂h)

and δa = δe but in the third part of GRU's.

Saved: the inputs, and h′ for RNN, the gates and tanh c′ for LSTM, the gates and eⁿ for GRU, as much as torch
saves. A whole sequence computes its gates again; a single step would pay two GEMMs more for that, of six.
When the backward itself is recorded it does so all the same: the saved gates do not know of the inputs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from bpkit.core.function import Function
from bpkit.core.fuse import formula
from bpkit.core.mask import nonzero
from bpkit.core.module import Handwritten
from bpkit.core.spec import LayerSpec, Sample, SavedBytes, nbytes, randn
from bpkit.layers import gru, lstm
from bpkit.layers.recurrent import Weights

Gradients = tuple[Tensor | None, ...]


def _products(need: tuple[bool, ...], input: Tensor, h: Tensor, da: Tensor, de: Tensor) -> Gradients:
    """∂L/∂ of the weights and biases."""
    w_ih, w_hh, b_ih, b_hh = need
    bias = da.sum(0) if b_ih or (b_hh and de is da) else None
    return (
        da.mT @ input if w_ih else None,
        de.mT @ h if w_hh else None,
        bias if b_ih else None,
        (bias if de is da else de.sum(0)) if b_hh else None,
    )


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
        *inputs, output = ctx.saved_tensors
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
        *inputs, output = ctx.saved_tensors
        return _rnn_gradients(ctx.needs_input_grad, inputs, grad_output * nonzero(output))


@formula
def _tanh(grad_output: Tensor, output: Tensor) -> Tensor:
    return grad_output * (1 - output * output)


def _rnn_gradients(need: tuple[bool, ...], inputs: list[Tensor], dz: Tensor) -> Gradients:
    input, h, w_ih, w_hh = inputs
    return (
        dz @ w_ih if need[0] else None,
        dz @ w_hh if need[1] else None,
        *_products(need[2:], input, h, dz, dz),
    )


class LSTMCellFunction(Function):
    """`(x [B, I], h [B, H], c [B, H], w_ih, w_hh, b_ih, b_hh)` to h′, c′ and the gates `[B, 4H]`."""

    autocast = {"cpu": "lower", "cuda": "lower"}

    @staticmethod
    def forward(
        input: Tensor, h: Tensor, c: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None,
        b_hh: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        i, f, g, o = gates = lstm.gates(linear(input, w_ih, b_ih) + linear(h, w_hh, b_hh))
        new = f * c + i * g
        tanh_c = new.tanh()
        return o * tanh_c, new, torch.cat((*gates, tanh_c), 1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(output[2])
        ctx.save_for_backward(*inputs, output[2])

    @staticmethod
    def backward(ctx: Any, grad_h: Tensor, grad_c: Tensor, _: Tensor) -> Gradients:
        input, h, c, w_ih, w_hh, b_ih, b_hh, kept = ctx.saved_tensors
        if torch.is_grad_enabled():
            gates = lstm.gates(linear(input, w_ih, b_ih) + linear(h, w_hh, b_hh))
            kept = torch.cat((*gates, (gates[1] * c + gates[0] * gates[2]).tanh()), 1)
        dz, dc = _lstm(grad_h, grad_c, kept, c)
        need = ctx.needs_input_grad
        return (
            dz @ w_ih if need[0] else None,
            dz @ w_hh if need[1] else None,
            dc * kept.chunk(5, 1)[1] if need[2] else None,
            *_products(need[3:], input, h, dz, dz),
        )


class WideLSTMCellFunction(LSTMCellFunction):
    """Keeps float32 under autocast, as torch on CPU does: there c′ is a sum with float32."""

    autocast = {"cpu": "fp32", "cuda": "lower"}


@formula
def _lstm(grad_h: Tensor, grad_c: Tensor, kept: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """δz and δc′."""
    i, f, g, o, tanh_c = kept.chunk(5, 1)
    dc = grad_c + grad_h * o * (1 - tanh_c * tanh_c)
    parts = dc * g * i * (1 - i), dc * c * f * (1 - f), dc * i * (1 - g * g), grad_h * tanh_c * o * (1 - o)
    return torch.cat(parts, 1), dc


class GRUCellFunction(Function):
    """`(x [B, I], h [B, H], w_ih, w_hh, b_ih, b_hh)` to h′ and r, u, n, eⁿ `[B, 4H]`."""

    autocast = {"cpu": "lower", "cuda": "lower"}

    @staticmethod
    def forward(
        input: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None, b_hh: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        _, u, n, _ = gates = gru.gates(linear(input, w_ih, b_ih), linear(h, w_hh, b_hh))
        return (h - n) * u + n, torch.cat(gates, 1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*inputs, output[1])

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, _: Tensor) -> Gradients:
        input, h, w_ih, w_hh, b_ih, b_hh, gates = ctx.saved_tensors
        if torch.is_grad_enabled():
            gates = torch.cat(gru.gates(linear(input, w_ih, b_ih), linear(h, w_hh, b_hh)), 1)
        r, u = gates.chunk(4, 1)[:2]
        da = de = _gru(grad_output, gates, h)
        need = ctx.needs_input_grad
        if need[1] or need[3] or need[5]:
            da_n = da.chunk(3, 1)[2]
            de = torch.cat((da[:, : -h.shape[1]], da_n * r), 1)
        return (
            da @ w_ih if need[0] else None,
            torch.addmm(grad_output * u, de, w_hh) if need[1] else None,
            *_products(need[2:], input, h, da, de),
        )


class WideGRUCellFunction(GRUCellFunction):
    """Keeps float32 under autocast, as torch on CPU does: there h′ is a sum with float32."""

    autocast = {"cpu": "fp32", "cuda": "lower"}


@formula
def _gru(grad_output: Tensor, gates: Tensor, h: Tensor) -> Tensor:
    """δa."""
    r, u, n, e_n = gates.chunk(4, 1)
    da_n = grad_output * (1 - u) * (1 - n * n)
    return torch.cat((da_n * e_n * r * (1 - r), grad_output * (h - n) * u * (1 - u), da_n), 1)


class _Cell(Handwritten, nn.RNNCellBase):
    """`forward` of a cell, to be put ahead of its torch class."""

    def _step(self, input: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        raise NotImplementedError(f"{type(self).__name__} has to say how it steps")

    def _run(self, input: Tensor, states: tuple[Tensor, ...] | None, count: int) -> tuple[Tensor, ...] | None:
        """New states; None where the arguments do not fit, for torch to say so in its words."""
        shape = (*input.shape[:-1], self.hidden_size)
        if input.dim() not in (1, 2) or input.shape[-1] != self.input_size:
            return None
        if states is None:
            states = (input.new_zeros(shape),) * count
        elif len(states) != count or any(state.shape != shape for state in states):
            return None
        if input.dim() == 2:
            return self._step(input, *states)
        new = self._step(input.unsqueeze(0), *(state.unsqueeze(0) for state in states))
        return tuple(state.squeeze(0) for state in new)

    @property
    def _weights(self) -> Weights:
        return Weights(self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)


class RNNCell(_Cell, nn.RNNCell):
    """`torch.nn.RNNCell` with a hand-written backward."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        new = self._run(input, None if hx is None else (hx,), 1) if self.nonlinearity in _RNN else None
        result: Tensor = super().forward(input, hx) if new is None else new[0]
        return result

    def _step(self, input: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        return (_RNN[self.nonlinearity].call(input, *states, *self._weights[:4]),)


_RNN = {"tanh": TanhRNNCellFunction, "relu": ReLURNNCellFunction}


class LSTMCell(_Cell, nn.LSTMCell):
    """`torch.nn.LSTMCell` with a hand-written backward."""

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        new = self._run(input, None if hx is None else tuple(hx), 2)
        result: Any = super().forward(input, hx) if new is None else new
        return result

    def _step(self, input: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        function = WideLSTMCellFunction if states[1].dtype is torch.float32 else LSTMCellFunction
        h, c, _ = function.call(input, *states, *self._weights[:4])
        return h, c


class GRUCell(_Cell, nn.GRUCell):
    """`torch.nn.GRUCell` with a hand-written backward."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        new = self._run(input, None if hx is None else (hx,), 1)
        result: Tensor = super().forward(input, hx) if new is None else new[0]
        return result

    def _step(self, input: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        function = WideGRUCellFunction if states[0].dtype is torch.float32 else GRUCellFunction
        return function.call(input, *states, *self._weights[:4])[:1]


def _samples() -> Iterable[Sample]:
    yield Sample(args=(3, 4), inputs=(randn(5, 3), randn(5, 4, seed=1)))
    yield Sample(args=(3, 4), kwargs={"bias": False}, inputs=(randn(2, 3),), label="no bias, no state")
    yield Sample(args=(3, 4), inputs=(randn(3), randn(4, seed=1)), label="unbatched")


def _rnn_samples() -> Iterable[Sample]:
    yield from _samples()
    yield Sample(args=(3, 4), kwargs={"nonlinearity": "relu"}, inputs=(randn(5, 3),), label="relu")


def _lstm_samples() -> Iterable[Sample]:
    for sample in _samples():
        input, *h = sample.inputs
        states = [(h[0], randn(*h[0].shape, seed=2))] if h else []
        yield replace(sample, inputs=(input, *states))


def _saved_bytes(parts: int) -> SavedBytes:
    """Bytes of the input, the states, and `parts` [B, H] more."""

    def saved_bytes(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> int:
        new = output if isinstance(output, tuple) else (output,)
        return nbytes(inputs[0], *new) + parts * nbytes(new[0])

    return saved_bytes


SPECS = tuple(
    LayerSpec(
        name=module.__name__,
        module=module,
        reference=reference,
        samples=samples,
        saves=saves,
        saved_bytes=_saved_bytes(parts),
        summary=summary,
    )
    for module, reference, samples, parts, saves, summary in (
        (RNNCell, nn.RNNCell, _rnn_samples, 1, "inputs, new state", "one step of an RNN"),
        (
            LSTMCell,
            nn.LSTMCell,
            _lstm_samples,
            5,
            "inputs, 4 gates, tanh of the new cell",
            "one step of an LSTM",
        ),
        (GRUCell, nn.GRUCell, _samples, 4, "inputs, 3 gates, candidate's part of h", "one step of a GRU"),
    )
)
