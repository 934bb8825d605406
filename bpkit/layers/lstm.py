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

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bpkit.core.function import Function
from bpkit.core.spec import LayerSpec, Sample, randn
from bpkit.layers.recurrent import (
    BatchSizes,
    Recurrent,
    Weights,
    affine,
    extended,
    first,
    may_write,
    run_kernel,
    saved_bytes,
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
        kernel = (w_hr is None or input.is_cuda) and not transformed()  # else torch's has no better way
        run = _kernel if kernel else _steps
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
        z = affine(input, w_ih, b_ih, b_hh)  #                                               [rows, 4H]
        factors = _factors_in_place if write else _factors
        f, r, through_c, local = factors(z, h_before, w_hh, c_0, sizes)

        eta, epsilon = grad_h[:0], grad_c[:0]
        dc = f_after = grad_c  # of the step after, once there is one
        steps = (grad_output.split(sizes), through_c.split(sizes), f.split(sizes), local.split(sizes))
        delta_z: list[Tensor] = []
        delta_h: list[Tensor] = []
        for grad_t, through_t, f_t, local_t in zip(*map(reversed, steps), strict=True):
            rows = grad_t.shape[0]
            if delta_z:
                eta, epsilon = delta_z[-1] @ w_hh, dc * f_after
            dh = grad_t + extended(eta, first(grad_h, rows))
            dr = dh if w_hr is None else dh @ w_hr
            dc = torch.addcmul(extended(epsilon, first(grad_c, rows)), dr, through_t)
            if write:
                local_t[:, :3].mul_(dc.unsqueeze(1))
                local_t[:, 3].mul_(dr)
                dz = local_t.flatten(1)
            else:
                dz = (local_t * torch.stack((dc, dc, dc, dr), 1)).reshape(rows, -1)
            delta_z.append(dz)
            f_after = f_t
            if need[7]:
                delta_h.append(dh)

        dz = local.flatten(1) if write else torch.cat(delta_z[::-1])
        grad_input = dz @ w_ih if need[0] else None
        if grad_input is not None and order is not None:
            grad_input = grad_input[order]
        bias = dz.sum(0) if need[5] or need[6] else None
        return (
            grad_input,
            delta_z[-1] @ w_hh if need[1] else None,
            dc * f_after if need[2] else None,
            dz.mT @ input if need[3] else None,
            dz.mT @ h_before if need[4] else None,
            bias if need[5] else None,
            bias if need[6] else None,
            torch.cat(delta_h[::-1]).mT @ r if need[7] else None,
            None,
            None,
        )


class WideLSTMFunction(LSTMFunction):
    """Keeps float32 under autocast, as torch on CPU does for the cells that oneDNN does not run."""

    autocast = {"cpu": "fp32", "cuda": "lower"}


def _gates(z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """i, f, g, o from z `[*, 4H]`."""
    i, f, g, o = z.chunk(4, -1)
    return i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()


Factors = tuple[Tensor, Tensor, Tensor, Tensor]


def _factors(z: Tensor, h_before: Tensor, w_hh: Tensor, c_0: Tensor, batch_sizes: BatchSizes) -> Factors:
    """For all rows: f, r, ∂r/∂c, and what turns (δc, δc, δc, δr) into δz `[rows, 4, H]`.

    `z` is still without h's part.
    """
    i, f, g, o = _gates(torch.addmm(z, h_before, w_hh.mT))
    cells: list[Tensor] = []
    state = c_0
    for f_t, fresh_t in zip(f.split(batch_sizes), (i * g).split(batch_sizes), strict=True):
        state = torch.addcmul(fresh_t, f_t, first(state, f_t.shape[0]))
        cells.append(state)
    tanh_c, c_before = torch.cat(cells).tanh(), states_before(cells, c_0)
    local = (g * i * (1 - i), c_before * f * (1 - f), i * (1 - g * g), tanh_c * o * (1 - o))
    return f, o * tanh_c, o * (1 - tanh_c * tanh_c), torch.stack(local, 1)


def _factors_in_place(
    z: Tensor, h_before: Tensor, w_hh: Tensor, c_0: Tensor, batch_sizes: BatchSizes
) -> Factors:
    """`_factors` in the memory of `z` where it can be: half the time at 4,096 rows, H = 256."""
    gates = z.addmm_(h_before, w_hh.mT).unflatten(1, (4, -1))
    gates[:, :2].sigmoid_()
    gates[:, 2].tanh_()
    gates[:, 3].sigmoid_()
    i, f, g, o = gates.unbind(1)
    c = i * g
    cells = c.split(batch_sizes)
    state = c_0
    for f_t, c_t in zip(f.split(batch_sizes), cells, strict=True):
        state = c_t.addcmul_(f_t, first(state, c_t.shape[0]))
    c_before, tanh_c = states_before(cells, c_0), c.tanh_()
    local = torch.addcmul(gates, gates, gates, value=-1)  # σ(1 - σ)
    local[:, 0].mul_(g)
    local[:, 1].mul_(c_before)
    torch.addcmul(i, i * g, g, value=-1, out=local[:, 2])
    local[:, 3].mul_(tanh_c)
    r = o * tanh_c
    return f, r, torch.addcmul(o, r, tanh_c, value=-1), local


def _steps(
    rows: Tensor, h: Tensor, c: Tensor, weights: Weights, batch_sizes: BatchSizes
) -> tuple[Tensor, Tensor, Tensor]:
    """The forward in plain algebra: under `torch.func`, and with projections on CPU."""
    w_ih, w_hh, b_ih, b_hh, w_hr = weights
    outputs = []
    for x_t in affine(rows, w_ih, b_ih, b_hh).split(batch_sizes):
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
    output, h_n, c_n = run_kernel(torch.lstm, rows, (h[None], c[None]), weights, batch_sizes)
    return output, h_n, c_n


class LSTM(Recurrent, nn.LSTM):
    """`torch.nn.LSTM` with a hand-written backward."""

    states = 2  # h and c

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
        vendor = uniform(batch_sizes) and not self.proj_size  # what oneDNN runs
        function = LSTMFunction if vendor or states[1].dtype is not torch.float32 else WideLSTMFunction
        output, h_n, c_n = function.call(rows, *states, *weights, order, batch_sizes)
        device = rows.device.type
        if self.proj_size and output.dtype is torch.float32 and torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)  # the projection is a matrix product; c is not
            output, h_n = output.to(dtype), h_n.to(dtype)
        return output, h_n, c_n


def _samples() -> Iterable[Sample]:
    yield Sample(args=(2, 3), inputs=(randn(3, 2, 2),))
    yield Sample(
        args=(2, 2),
        kwargs={"bidirectional": True, "batch_first": True, "bias": False},
        inputs=(randn(2, 2, 2), (randn(2, 2, 2, seed=1), randn(2, 2, 2, seed=2))),
        label="both directions, hx",
    )
    yield Sample(args=(2, 3, 2), kwargs={"proj_size": 2}, inputs=(randn(2, 2),), label="2 layers, projected")


SPECS = (
    LayerSpec(
        name="LSTM",
        module=LSTM,
        reference=nn.LSTM,
        samples=_samples,
        saves="input and output of every layer",
        saved_bytes=saved_bytes,
        aliases=("lstm",),
        summary="long short-term memory",
    ),
)
