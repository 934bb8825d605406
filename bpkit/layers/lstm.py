"""LSTM: long short-term memory, through the whole sequence at once.

    z_t = x_t W_ihᵀ + b_ih + h_{t-1} W_hhᵀ + b_hh           [B, 4H], in four parts:
    i_t = σ(zⁱ_t)   f_t = σ(zᶠ_t)   g_t = tanh(zᵍ_t)   o_t = σ(zᵒ_t)
    c_t = f_t c_{t-1} + i_t g_t                             [B, H]
    r_t = o_t tanh(c_t)                                     [B, H]
    h_t = r_t W_hrᵀ, or r_t without projection              [B, P]

t: time, B: batch, I: input, H: hidden, P: projection (P = H without one).

Saved: the input x and the output h. Given all h_t, the gates of all steps follow from one GEMM each for
x and h, and c_t from an elementwise scan; the alternative, saving the gates and c, takes five H a step
more, and is no faster, for then the forward cannot be the vendor's (measured at T=64, B=32, I=H=256:
recomputing 8 ms, a forward loop that keeps the gates 6 ms over the vendor's). Since h is the output of
this Function, second derivatives pass through it: nothing in the backward is a constant that depends
on the inputs.

Backward. Let δh_t, δr_t, δc_t, δz_t be ∂L/∂ of the above along all paths. Of the step after, t+1, arrive
η_t = δz_{t+1} W_hh and ε_t = f_{t+1} δc_{t+1}; at the end of a sequence they are ∂L/∂h_n and ∂L/∂c_n.

    δh_t = ∂L/∂output_t + η_t
    δr_t = δh_t W_hr
    δc_t = ε_t + δr_t · o_t (1 - tanh² c_t)
    δzⁱ_t = δc_t · g_t i_t (1 - i_t)                        δzᶠ_t = δc_t · c_{t-1} f_t (1 - f_t)
    δzᵍ_t = δc_t · i_t (1 - g_t²)                           δzᵒ_t = δr_t · tanh(c_t) o_t (1 - o_t)

The factors after the dots are local, so they are formed for all steps in bulk; the loop back through
time has one GEMM and few products a step. Then, with n running over all rows of all steps,

    ∂L/∂x = δz W_ih     ∂L/∂W_ih = Σₙ δz_n ⊗ x_n     ∂L/∂W_hh = Σₙ δz_n ⊗ h_before,n
    ∂L/∂b_ih = ∂L/∂b_hh = Σₙ δz_n     ∂L/∂W_hr = Σₙ δh_n ⊗ r_n     ∂L/∂h_0 = η     ∂L/∂c_0 = ε

Sources: Hochreiter & Schmidhuber, "Long short-term memory", 1997; Gers et al., "Learning to forget", 2000;
Sak et al., https://arxiv.org/abs/1402.1128 (projection); Werbos, "Backpropagation through time", 1990.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bpkit.core.function import Function
from bpkit.layers.recurrent import (
    BatchSizes,
    Recurrent,
    Weights,
    extended,
    first,
    may_write,
    states_before,
    transformed,
    uniform,
)


class LSTMFunction(Function):
    """One layer in one direction: `(x [rows, I], h_0 [B, P], c_0 [B, H], ...)` to output, h_n, c_n.

    `rows` are packed by step, `batch_sizes` to a step. `order` is None, or the order in which to read
    them (and to write the output), which must be its own inverse.
    """

    autocast = {"cpu": "lower", "cuda": "lower"}

    @staticmethod
    def forward(
        input: Tensor,
        h_0: Tensor,
        c_0: Tensor,
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor | None,
        b_hh: Tensor | None,
        w_hr: Tensor | None,
        order: Tensor | None,
        batch_sizes: BatchSizes,
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows = input if order is None else input[order]
        run = _steps if transformed() else _kernel
        output, h_n, c_n = run(rows, h_0, c_0, (w_ih, w_hh, b_ih, b_hh, w_hr), batch_sizes)
        return output if order is None else output[order], h_n, c_n

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.batch_sizes = inputs
        ctx.save_for_backward(*tensors, output[0])

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, grad_h: Tensor, grad_c: Tensor) -> tuple[Tensor | None, ...]:
        input, h_0, c_0, w_ih, w_hh, b_ih, b_hh, w_hr, order, output = ctx.saved_tensors
        sizes, need, write = ctx.batch_sizes, ctx.needs_input_grad, may_write()
        if order is not None:
            input, output, grad_output = input[order], output[order], grad_output[order]
        h_before = states_before(output.split(sizes), h_0)
        z = _affine(input, w_ih, b_ih, b_hh) + h_before @ w_hh.mT
        i, f, g, o = _gates(z)
        cells, c_before = _cells(f, i * g, c_0, sizes, write)
        tanh_c = cells.tanh()
        through_c = o * (1 - tanh_c * tanh_c)  # ∂r/∂c                                     [rows, H]
        local = torch.stack(  # ∂z-parts of the chain: δz = (δc, δc, δc, δr) · local       [rows, 4, H]
            (g * i * (1 - i), c_before * f * (1 - f), i * (1 - g * g), tanh_c * o * (1 - o)), 1
        )

        eta, epsilon = grad_h[:0], grad_c[:0]
        steps = (grad_output.split(sizes), through_c.split(sizes), f.split(sizes), local.split(sizes))
        delta_z, delta_h = [], []
        for grad_t, through_t, f_t, local_t in zip(*map(reversed, steps), strict=True):
            rows = grad_t.shape[0]
            dh = grad_t + extended(eta, first(grad_h, rows))
            dr = dh if w_hr is None else dh @ w_hr
            dc = torch.addcmul(extended(epsilon, first(grad_c, rows)), dr, through_t)
            if write:  # into `local`, which is our own: a fifth of the time at T=64, B=64, H=256
                local_t[:, :3].mul_(dc.unsqueeze(1))
                local_t[:, 3].mul_(dr)
                dz = local_t.flatten(1)
            else:
                dz = (local_t * torch.stack((dc, dc, dc, dr), 1)).flatten(1)
            delta_z.append(dz)
            delta_h.append(dh)
            eta, epsilon = dz @ w_hh, dc * f_t

        dz = local.flatten(1) if write else torch.cat(delta_z[::-1])
        grad_input = dz @ w_ih if need[0] else None
        if grad_input is not None and order is not None:
            grad_input = grad_input[order]
        bias = dz.sum(0) if need[5] or need[6] else None
        return (
            grad_input,
            eta,
            epsilon,
            dz.mT @ input if need[3] else None,
            dz.mT @ h_before if need[4] else None,
            bias if need[5] else None,
            bias if need[6] else None,
            torch.cat(delta_h[::-1]).mT @ (o * tanh_c) if need[7] else None,
            None,
            None,
        )


class PackedLSTMFunction(LSTMFunction):
    """With sequences of several lengths, for which torch on CPU keeps float32 under autocast."""

    autocast = {"cpu": "fp32", "cuda": "lower"}


def _affine(input: Tensor, weight: Tensor, b_ih: Tensor | None, b_hh: Tensor | None) -> Tensor:
    """X W_ihᵀ + b_ih + b_hh, for all rows in one GEMM."""
    return nn.functional.linear(input, weight, None if b_ih is None or b_hh is None else b_ih + b_hh)


def _gates(z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """i, f, g, o from z `[*, 4H]`."""
    i, f, g, o = z.chunk(4, -1)
    return i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()


def _cells(
    f: Tensor, fresh: Tensor, c_0: Tensor, batch_sizes: BatchSizes, write: bool
) -> tuple[Tensor, Tensor]:
    """c_t = f_t c_{t-1} + fresh_t over all steps, and each step's c_{t-1}; `write` spends `fresh`."""
    cells: list[Tensor] = []
    state = c_0
    for f_t, fresh_t in zip(f.split(batch_sizes), fresh.split(batch_sizes), strict=True):
        before = first(state, f_t.shape[0])
        state = fresh_t.addcmul_(f_t, before) if write else torch.addcmul(fresh_t, f_t, before)
        cells.append(state)
    return fresh if write else torch.cat(cells), states_before(cells, c_0)


def _steps(
    rows: Tensor, h: Tensor, c: Tensor, weights: Weights, batch_sizes: BatchSizes
) -> tuple[Tensor, Tensor, Tensor]:
    """The forward in plain algebra, for where torch's kernel cannot go (`torch.func`)."""
    w_ih, w_hh, b_ih, b_hh, w_hr = weights
    outputs = []
    for x_t in _affine(rows, w_ih, b_ih, b_hh).split(batch_sizes):
        count = x_t.shape[0]
        i, f, g, o = _gates(x_t + first(h, count) @ w_hh.mT)
        c_t = f * first(c, count) + i * g
        r_t = o * c_t.tanh()
        h_t = r_t if w_hr is None else r_t @ w_hr.mT
        outputs.append(h_t)
        h, c = extended(h_t, h), extended(c_t, c)
    return torch.cat(outputs), h, c


def _kernel(
    rows: Tensor, h: Tensor, c: Tensor, weights: Weights, batch_sizes: BatchSizes
) -> tuple[Tensor, Tensor, Tensor]:
    """The forward by torch's kernel, which packs W_hh once a call."""
    flat = [weight for weight in weights if weight is not None]
    hx, settings = (h[None], c[None]), (weights[2] is not None, 1, 0.0, False, False)
    if uniform(batch_sizes):
        steps = rows.view(len(batch_sizes), h.shape[0], rows.shape[-1])
        output, h_n, c_n = torch.lstm(steps, hx, flat, *settings, False)
        output = output.flatten(0, 1)
    else:
        output, h_n, c_n = torch.lstm(rows, torch.tensor(batch_sizes), hx, flat, *settings)
    return output, h_n[0], c_n[0]


class LSTM(Recurrent, nn.LSTM):
    """`torch.nn.LSTM` with a hand-written backward."""

    def _zeros(self, input: Tensor, batch_sizes: Tensor | None) -> tuple[Tensor, Tensor]:
        return (
            input.new_zeros(self.get_expected_hidden_size(input, batch_sizes)),
            input.new_zeros(self.get_expected_cell_size(input, batch_sizes)),
        )

    def _run(
        self,
        rows: Tensor,
        states: tuple[Tensor, ...],
        weights: Weights,
        order: Tensor | None,
        batch_sizes: BatchSizes,
    ) -> tuple[Tensor, ...]:
        function = LSTMFunction if uniform(batch_sizes) else PackedLSTMFunction
        output: tuple[Tensor, ...] = function.call(rows, *states, *weights, order, batch_sizes)
        return output
