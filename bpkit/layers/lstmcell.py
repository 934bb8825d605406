"""LSTMCell: one step of an LSTM, by the equations of `lstm.py` without a projection.

    c′ = f c + i g     h′ = o tanh c′

With η = ∂L/∂h′ and ε = ∂L/∂c′:

    δc′ = ε + η o (1 - tanh² c′)                            ∂L/∂c = δc′ f
    δzⁱ = δc′ g i (1 - i)     δzᶠ = δc′ c f (1 - f)     δzᵍ = δc′ i (1 - g²)     δzᵒ = η tanh c′ o (1 - o)

and the rest as in `cell.py` with δa = δe = δz. Saved: the inputs, the gates and tanh c′, as much as torch
saves.
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
from bpkit.core.holomorphic import conjugates
from bpkit.core.spec import LayerSpec, Sample, randn
from bpkit.layers.cell import Cell, Gradients, products, samples, saved_bytes
from bpkit.layers.lstm import gates


class LSTMCellFunction(Function):
    """`(x [B, I], h [B, H], c [B, H], w_ih, w_hh, b_ih, b_hh)` to h′, c′ and gates, tanh c′ `[B, 5H]`."""

    autocast = {"cpu": "lower", "cuda": "lower"}

    @staticmethod
    def forward(
        input: Tensor, h: Tensor, c: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None,
        b_hh: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        i, f, g, o = gates(linear(input, w_ih, b_ih) + linear(h, w_hh, b_hh))
        new = f * c + i * g
        tanh_c = new.tanh()
        return o * tanh_c, new, torch.cat((i, f, g, o, tanh_c), 1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(output[2])
        ctx.save_for_backward(*inputs, output[2])

    @staticmethod
    def backward(ctx: Any, grad_h: Tensor, grad_c: Tensor, _: Tensor) -> Gradients:
        input, h, c, w_ih, w_hh, b_ih, b_hh, kept = conjugates(ctx.saved_tensors)
        if torch.is_grad_enabled():
            i, f, g, o = gates(linear(input, w_ih, b_ih) + linear(h, w_hh, b_hh))
            kept = torch.cat((i, f, g, o, (f * c + i * g).tanh()), 1)
        dz, dc = _lstm(grad_h, grad_c, kept, c)
        need = ctx.needs_input_grad
        return (
            dz @ w_ih if need[0] else None,
            dz @ w_hh if need[1] else None,
            dc * kept.chunk(5, 1)[1] if need[2] else None,
            *products(need[3:], input, h, dz, dz),
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


class LSTMCell(Cell, nn.LSTMCell):
    """`torch.nn.LSTMCell` with a hand-written backward."""

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        new = self._run(input, None if hx is None else tuple(hx), 2)
        result: Any = super().forward(input, hx) if new is None else new
        return result

    def _step(self, input: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        function = WideLSTMCellFunction if states[1].dtype is torch.float32 else LSTMCellFunction
        h, c, _ = function.call(input, *states, *self._weights[:4])
        return h, c


def _samples() -> Iterable[Sample]:
    for sample in samples():
        input, *h = sample.inputs
        states = [(h[0], randn(*h[0].shape, seed=2))] if h else []
        yield replace(sample, inputs=(input, *states))


SPECS = (
    LayerSpec(
        name="LSTMCell",
        module=LSTMCell,
        reference=nn.LSTMCell,
        samples=_samples,
        saves="inputs, 4 gates, tanh of the new cell",
        saved_bytes=saved_bytes(5),
        summary="one step of an LSTM",
    ),
)
