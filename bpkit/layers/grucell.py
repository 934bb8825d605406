"""GRUCell: one step of a GRU, by the equations of `gru.py`: h′ = (1 - u) n + u h.

With η = ∂L/∂h′ and eⁿ the candidate's part of e = h W_hhᵀ + b_hh:

    δaⁿ = η (1 - u) (1 - n²)     δaʳ = δaⁿ eⁿ r (1 - r)     δaᵘ = η (h - n) u (1 - u)
    δe is δa but for δeⁿ = r δaⁿ                             ∂L/∂h = δe W_hh + η u

and the rest as in `cell.py`. Saved: the inputs, the gates and eⁿ, as much as torch saves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from bpkit.core.function import Function
from bpkit.core.fuse import formula
from bpkit.core.holomorphic import conjugates
from bpkit.core.spec import LayerSpec
from bpkit.layers import gru
from bpkit.layers.cell import Cell, Gradients, products, samples, saved_bytes


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
        input, h, w_ih, w_hh, b_ih, b_hh, gates = conjugates(ctx.saved_tensors)
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
            *products(need[2:], input, h, da, de),
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


class GRUCell(Cell, nn.GRUCell):
    """`torch.nn.GRUCell` with a hand-written backward."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        new = self._run(input, None if hx is None else (hx,), 1)
        result: Tensor = super().forward(input, hx) if new is None else new[0]
        return result

    def _step(self, input: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        function = WideGRUCellFunction if states[0].dtype is torch.float32 else GRUCellFunction
        return function.call(input, *states, *self._weights[:4])[:1]


SPECS = (
    LayerSpec(
        name="GRUCell",
        module=GRUCell,
        reference=nn.GRUCell,
        samples=samples,
        saves="inputs, 3 gates, candidate's part of h",
        saved_bytes=saved_bytes(4),
        summary="one step of a GRU",
    ),
)
