"""GRU: gated recurrent unit, through the whole sequence at once.

    a_t = x_t W_ihᵀ + b_ih,  e_t = h_{t-1} W_hhᵀ + b_hh         [B, 3H], each in three parts:
    r_t = σ(aʳ_t + eʳ_t)   u_t = σ(aᵘ_t + eᵘ_t)   n_t = tanh(aⁿ_t + r_t eⁿ_t)
    h_t = (1 - u_t) n_t + u_t h_{t-1}                           [B, H]

t: time, B: batch, I: input, H: hidden; u is the update gate, z in torch's documentation.

Saved: the input x and the output h, a quarter of what torch keeps. Given all h_t, the gates of all steps
follow from one GEMM each for x and h. Since h is the output of this Function, second derivatives pass
through it: nothing in the backward is a constant that depends on the inputs.

Backward. Let δh_t, δa_t, δe_t be ∂L/∂ of the above along all paths. Of the step after arrives η_t, which
is ∂L/∂h_n at the end of a sequence:

    δh_t = ∂L/∂output_t + η_t           η_{t-1} = δh_t u_t + δe_t W_hh
    δaⁿ_t = δh_t · s_t                  with s_t = (1 - u_t)(1 - n_t²)
    δeⁿ_t = δh_t · s_t r_t
    δaʳ_t = δeʳ_t = δh_t · s_t eⁿ_t r_t (1 - r_t)
    δaᵘ_t = δeᵘ_t = δh_t · (h_{t-1} - n_t) u_t (1 - u_t)

The factors after the dots are local, so they are formed for all steps in bulk; the loop back through
time has one GEMM and few products a step. Then, with n running over all rows of all steps,

    ∂L/∂x = δa W_ih     ∂L/∂W_ih = Σₙ δa_n ⊗ x_n     ∂L/∂b_ih = Σₙ δa_n     ∂L/∂h_0 = η
                        ∂L/∂W_hh = Σₙ δe_n ⊗ h_before,n     ∂L/∂b_hh = Σₙ δe_n

Sources: Cho et al., https://arxiv.org/abs/1406.1078, with r outside of the matrix product, as cuDNN and
torch have it; Werbos, "Backpropagation through time", 1990.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bpkit.core.function import Function
from bpkit.core.spec import LayerSpec, Sample, randn
from bpkit.layers.recurrence import (
    BatchSizes,
    Derived,
    Side,
    Weights,
    extended,
    first,
    gradients,
    keep,
    run,
)
from bpkit.layers.recurrent import Recurrent, saved_bytes


class GRUFunction(Function):
    """One layer: `(x [T, B, I] or [rows, I], h_0 [D, B, H], ...)` to output `[.., D·H]`, h_n `[D, B, H]`.

    D directions, with the five `Weights` of each.
    """

    autocast = {"cpu": "lower", "cuda": "lower"}

    @staticmethod
    def forward(
        input: Tensor, h_0: Tensor, batch_sizes: BatchSizes, *weights: Tensor | None
    ) -> tuple[Tensor, ...]:
        return run(torch.gru, step, input, (h_0,), batch_sizes, weights)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        keep(ctx, inputs, output[0])

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, grad_h: Tensor) -> tuple[Tensor | None, ...]:
        return gradients(ctx, _through_time, grad_output, grad_h)


class WideGRUFunction(GRUFunction):
    """Keeps float32 under autocast, as torch on CPU does: there h is a sum with its float32 self."""

    autocast = {"cpu": "fp32", "cuda": "lower"}


def gates(a: Tensor, e: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """r, u, n and eⁿ from a and e `[*, 3H]`."""
    (a_r, a_u, a_n), (e_r, e_u, e_n) = a.chunk(3, -1), e.chunk(3, -1)
    r, u = (a_r + e_r).sigmoid(), (a_u + e_u).sigmoid()
    return r, u, (a_n + r * e_n).tanh(), e_n


def step(a: Tensor, weights: Weights, h: Tensor) -> tuple[Tensor]:
    """h_t from a_t and h_{t-1}."""
    _, u, n, _ = gates(a, nn.functional.linear(h, weights.w_hh, weights.b_hh))
    return ((h - n) * u + n,)


def factors(h_before: Tensor, r: Tensor, u: Tensor, n: Tensor, e_n: Tensor) -> tuple[Tensor, Tensor]:
    """For all rows: s, and what turns δh into δe `[rows, 3, H]`."""
    s = (1 - u) * (1 - n * n)
    s_r = s * r
    return s, torch.stack((s_r * e_n * (1 - r), (h_before - n) * u * (1 - u), s_r), 1)


def _through_time(side: Side) -> Derived:
    steps, (w_ih, w_hh, b_ih, b_hh, _) = side.steps, side.weights
    h_before = steps.before(side.output, *side.initial)
    a, e = nn.functional.linear(side.input, w_ih, b_ih), nn.functional.linear(h_before, w_hh, b_hh)
    (eta,) = side.grad_final
    de, dh, u_after = a[:0], eta[:0], eta[:0]  # of the step after
    if side.write:
        u, s, local = _factors_in_place(a, e, h_before)
        delta_e, delta_h = local.flatten(1), side.grad_output
        for dh_t, dh_wide, u_t, local_t, de_t in steps.backwards(
            delta_h, delta_h.unsqueeze(1), u, local, delta_e
        ):
            if len(dh) == len(dh_t):
                dh_t.addcmul_(dh, u_after).addmm_(de, w_hh)
            else:
                torch.addmm(dh * u_after, de, w_hh, out=eta[: len(dh)])
                dh_t.add_(eta[: len(dh_t)])
            local_t.mul_(dh_wide)
            de, dh, u_after = de_t, dh_t, u_t
    else:
        r, u, n, e_n = gates(a, e)
        s, local = factors(h_before, r, u, n, e_n)
        all_de: list[Tensor] = []
        all_dh: list[Tensor] = []
        for grad_t, u_t, local_t in steps.backwards(side.grad_output, u, local):
            if all_dh:
                eta = extended(torch.addmm(dh * u_after, de, w_hh), eta)
            dh = grad_t + first(eta, grad_t.shape[0])
            de, u_after = (local_t * dh.unsqueeze(1)).reshape(-1, a.shape[1]), u_t
            all_de.append(de)
            all_dh.append(dh)
        delta_e, delta_h = steps.join(all_de[::-1]), steps.join(all_dh[::-1])
    if side.need_initial[0]:
        eta = extended(torch.addmm(dh * u_after, de, w_hh), eta)
    of_w_hh = delta_e.mT @ h_before if side.need[1] else None
    of_b_hh = delta_e.sum(0) if side.need[3] else None
    if side.write:  # over δe, which has served: they differ in the third part alone
        torch.mul(delta_h, s, out=local[:, 2])
        delta_a = delta_e
    else:
        delta_a = torch.cat((delta_e[:, : -s.shape[1]], delta_h * s), 1)
    return Derived(delta_a, (eta,), of_w_hh, of_b_hh)


def _factors_in_place(a: Tensor, e: Tensor, h_before: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For all rows: u, s, and what turns δh into δe `[rows, 3, H]`; in the memory of `a` and `e`."""
    local, e = a.unflatten(1, (3, -1)), e.unflatten(1, (3, -1))
    r_u, n, e_n = local[:, :2], local[:, 2], e[:, 2]
    r_u.add_(e[:, :2]).sigmoid_()
    r, u = r_u.unbind(1)
    n.addcmul_(r, e_n).tanh_()
    less = torch.sub(1, r_u, out=e[:, :2])  # 1 - r, 1 - u
    s = (1 - n * n).mul_(less[:, 1])
    slope_r, slope_u = less.mul_(r_u).unbind(1)
    kept = u.clone()
    torch.mul(slope_u, h_before.sub(n), out=u)
    torch.mul(s, r, out=n)
    torch.mul(slope_r.mul_(s), e_n, out=r)
    return kept, s, local


class GRU(Recurrent, nn.GRU):
    """`torch.nn.GRU` with a hand-written backward."""

    def _layer(
        self, input: Tensor, states: tuple[Tensor, ...], batch_sizes: BatchSizes, weights: list[Tensor | None]
    ) -> tuple[Tensor, ...]:
        function = WideGRUFunction if states[0].dtype is torch.float32 else GRUFunction
        output: tuple[Tensor, ...] = function.call(input, *states, batch_sizes, *weights)
        return output


def _samples() -> Iterable[Sample]:
    yield Sample(args=(2, 3), inputs=(randn(3, 2, 2), randn(1, 2, 3, seed=1)))
    yield Sample(
        args=(2, 3, 2),
        kwargs={"bidirectional": True, "batch_first": True, "bias": False},
        inputs=(randn(2, 2, 2),),
        label="2 layers, both directions, no bias",
    )
    yield Sample(args=(2, 3), inputs=(randn(3, 2),), label="unbatched")


SPECS = (
    LayerSpec(
        name="GRU",
        module=GRU,
        reference=nn.GRU,
        samples=_samples,
        saves="input and output of every layer",
        saved_bytes=saved_bytes,
        aliases=("gru",),
        summary="gated recurrent unit",
    ),
)
