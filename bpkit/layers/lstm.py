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

from bpkit import ops
from bpkit.core.function import Function
from bpkit.core.spec import LayerSpec, Sample, randn
from bpkit.layers.recurrence import (
    BatchSizes,
    Derived,
    Side,
    Steps,
    Weights,
    extended,
    first,
    gradients,
    keep,
    run,
)
from bpkit.layers.recurrent import Recurrent, saved_bytes


class LSTMFunction(Function):
    """One layer: `(x [T, B, I] or [rows, I], h_0 [D, B, P], c_0 [D, B, H], ...)` to output, h_n, c_n.

    D directions, with the five `Weights` of each.
    """

    autocast = {"cpu": "lower", "cuda": "lower"}

    @staticmethod
    def forward(
        input: Tensor, h_0: Tensor, c_0: Tensor, batch_sizes: BatchSizes, *weights: Tensor | None
    ) -> tuple[Tensor, ...]:
        projected = weights[-1] is not None
        kernel = None if projected and not input.is_cuda else torch.lstm  # on CPU torch has none either
        return run(kernel, step, input, (h_0, c_0), batch_sizes, weights)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        keep(ctx, inputs, output[0])

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, grad_h: Tensor, grad_c: Tensor) -> tuple[Tensor | None, ...]:
        return gradients(ctx, _through_time, grad_output, grad_h, grad_c)


class WideLSTMFunction(LSTMFunction):
    """Keeps float32 under autocast, as torch on CPU does for the cells that oneDNN does not run."""

    autocast = {"cpu": "fp32", "cuda": "lower"}


def gates(z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """i, f, g, o from z `[*, 4H]`."""
    i, f, g, o = z.chunk(4, -1)
    return i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()


def step(z: Tensor, weights: Weights, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """h_t, c_t from x_t W_ihᵀ + b_ih, h_{t-1} and c_{t-1}."""
    i, f, g, o = gates(z + nn.functional.linear(h, weights.w_hh, weights.b_hh))
    c = f * c + i * g
    r = o * c.tanh()
    return r if weights.w_hr is None else r @ weights.w_hr.mT, c


def _through_time(side: Side) -> Derived:
    steps, (w_ih, w_hh, b_ih, b_hh, w_hr) = side.steps, side.weights
    h_0, c_0 = side.initial
    h_before = steps.before(side.output, h_0)
    bias = None if b_ih is None or b_hh is None else b_ih + b_hh
    z = nn.functional.linear(side.input, w_ih, bias)  #                                     [rows, 4H]
    eta, epsilon = side.grad_final
    dz, dc, f_after = z[:0], epsilon[:0], epsilon[:0]  # of the step after
    if side.write:
        f, r, through_c, local = _factors_in_place(steps, z.addmm_(h_before, w_hh.mT), c_0)
        parts = (side.grad_output, through_c, through_c.unsqueeze(1), f)
        blocks = (local[:, :3], local[:, 3], local.flatten(1))
        for dh, through_t, dc_wide, f_t, local_ifg, local_o, dz_t in steps.backwards(*parts, *blocks):
            if len(dz) == len(dh):
                dh.addmm_(dz, w_hh)
                dr = dh if w_hr is None else dh @ w_hr
                dc = through_t.mul_(dr).addcmul_(dc, f_after)
            else:
                torch.mm(dz, w_hh, out=eta[: len(dz)])
                torch.mul(dc, f_after, out=epsilon[: len(dz)])
                dh.add_(eta[: len(dh)])
                dr = dh if w_hr is None else dh @ w_hr
                dc = through_t.mul_(dr).add_(epsilon[: len(dh)])
            local_ifg.mul_(dc_wide)
            local_o.mul_(dr)
            dz, f_after = dz_t, f_t
        delta_z, delta_h = blocks[-1], side.grad_output
    else:
        f, r, through_c, local = _factors(steps, z + h_before @ w_hh.mT, c_0)
        all_dz: list[Tensor] = []
        all_dh: list[Tensor] = []
        for grad_t, through_t, f_t, local_t in steps.backwards(side.grad_output, through_c, f, local):
            rows = grad_t.shape[0]
            if all_dz:
                eta, epsilon = extended(dz @ w_hh, eta), extended(dc * f_after, epsilon)
            dh = grad_t + first(eta, rows)
            dr = dh if w_hr is None else dh @ w_hr
            dc = torch.addcmul(first(epsilon, rows), dr, through_t)
            dz = (local_t * torch.stack((dc, dc, dc, dr), 1)).reshape(-1, z.shape[1])
            f_after = f_t
            all_dz.append(dz)
            all_dh.append(dh)
        delta_z, delta_h = steps.join(all_dz[::-1]), steps.join(all_dh[::-1])
    if side.need_initial[0]:
        eta = extended(dz @ w_hh, eta)
    if side.need_initial[1]:
        epsilon = extended(dc * f_after, epsilon)
    return Derived(
        delta_z,
        (eta, epsilon),
        delta_z.mT @ h_before if side.need[1] else None,
        w_hr=delta_h.mT @ r if side.need[4] else None,
    )


Factors = tuple[Tensor, Tensor, Tensor, Tensor]


def _factors(steps: Steps, z: Tensor, c_0: Tensor) -> Factors:
    """For all rows: f, r, ∂r/∂c, and what turns (δc, δc, δc, δr) into δz `[rows, 4, H]`."""
    i, f, g, o = gates(z)
    cells = []
    state = c_0
    for f_t, fresh_t in zip(steps.split(f), steps.split(i * g), strict=True):
        cells.append(torch.addcmul(fresh_t, f_t, first(state, f_t.shape[0])))
        state = extended(cells[-1], state)
    c = steps.join(cells)
    tanh_c, c_before = c.tanh(), steps.before(c, c_0)
    local = (g * i * (1 - i), c_before * f * (1 - f), i * (1 - g * g), tanh_c * o * (1 - o))
    return f, o * tanh_c, o * (1 - tanh_c * tanh_c), torch.stack(local, 1)


def _factors_in_place(steps: Steps, z: Tensor, c_0: Tensor) -> Factors:
    """`_factors` in the memory of `z`: half the time at 4,096 rows, H = 256."""
    local = z.unflatten(1, (4, -1))
    i, f, g, o = local.unbind(1)
    local[:, :2].sigmoid_()
    g.tanh_()
    o.sigmoid_()
    fresh = i * g
    c = fresh.clone()
    state = c_0
    for f_t, c_t in zip(steps.split(f), steps.split(c), strict=True):
        c_t.addcmul_(f_t, first(state, c_t.shape[0]))
        state = extended(c_t, state)
    c_before, tanh_c, kept_f = steps.before(c, c_0), c.tanh_(), f.clone()
    r = o * tanh_c
    through_c = torch.addcmul(o, r, tanh_c, value=-1)
    torch.addcmul(i, fresh, g, value=-1, out=g)
    torch.addcmul(fresh, fresh, i, value=-1, out=i)
    torch.addcmul(f, f, f, value=-1, out=f).mul_(c_before)
    torch.addcmul(r, r, o, value=-1, out=o)
    return kept_f, r, through_c, local


class LSTM(Recurrent, nn.LSTM):
    """`torch.nn.LSTM` with a hand-written backward."""

    states = 2  # h and c

    def _zeros(self, input: Tensor, batch_sizes: Tensor | None) -> tuple[Tensor, Tensor]:
        return (
            input.new_zeros(self.get_expected_hidden_size(input, batch_sizes)),
            input.new_zeros(self.get_expected_cell_size(input, batch_sizes)),
        )

    def _layer(
        self, input: Tensor, states: tuple[Tensor, ...], batch_sizes: BatchSizes, weights: list[Tensor | None]
    ) -> tuple[Tensor, ...]:
        vendor = batch_sizes is None and not self.proj_size  # what oneDNN runs
        function = LSTMFunction if vendor or states[1].dtype is not torch.float32 else WideLSTMFunction
        output, h_n, c_n = function.call(input, *states, batch_sizes, *weights)
        device = input.device.type
        if self.proj_size and output.dtype is torch.float32 and torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)  # the projection is a matrix product; c is not
            output, h_n = ops.to(output, dtype), ops.to(h_n, dtype)
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
