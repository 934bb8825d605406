"""RNN: Elman's recurrent network with tanh or ReLU, through the whole sequence at once.

    h_t = φ(z_t)    z_t = x_t W_ihᵀ + b_ih + h_{t-1} W_hhᵀ + b_hh          [B, H],  φ = tanh or ReLU

t: time, B: batch, I: input, H: hidden.

Saved: the input x and the output h, from which φ′(z) follows: 1 - h² for tanh, [h > 0] for ReLU. Since h
is the output of this Function, second derivatives pass through it.

Backward. Let δh_t and δz_t be ∂L/∂h_t and ∂L/∂z_t along all paths. Of the step after arrives
η_t = δz_{t+1} W_hh; at the end of a sequence it is ∂L/∂h_n.

    δh_t = ∂L/∂output_t + η_t       δz_t = δh_t φ′(z_t)

φ′ is formed for all steps in bulk; the loop back through time has one GEMM a step. Then, with n running
over all rows of all steps,

    ∂L/∂x = δz W_ih     ∂L/∂W_ih = Σₙ δz_n ⊗ x_n     ∂L/∂W_hh = Σₙ δz_n ⊗ h_before,n
    ∂L/∂b_ih = ∂L/∂b_hh = Σₙ δz_n     ∂L/∂h_0 = η

Sources: Elman, "Finding structure in time", 1990; Werbos, "Backpropagation through time", 1990.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bpkit.core.function import Function
from bpkit.core.mask import nonzero
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


class TanhRNNFunction(Function):
    """One layer: `(x [T, B, I] or [rows, I], h_0 [D, B, H], ...)` to output `[.., D·H]`, h_n `[D, B, H]`.

    D directions, with the five `Weights` of each.
    """

    autocast = {"cpu": "lower", "cuda": "lower"}

    @staticmethod
    def forward(
        input: Tensor, h_0: Tensor, batch_sizes: BatchSizes, *weights: Tensor | None
    ) -> tuple[Tensor, ...]:
        return run(torch.rnn_tanh, tanh_step, input, (h_0,), batch_sizes, weights)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        keep(ctx, inputs, output[0])

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, grad_h: Tensor) -> tuple[Tensor | None, ...]:
        return gradients(ctx, _tanh, grad_output, grad_h)


class ReLURNNFunction(TanhRNNFunction):
    """The same with φ = ReLU."""

    @staticmethod
    def forward(
        input: Tensor, h_0: Tensor, batch_sizes: BatchSizes, *weights: Tensor | None
    ) -> tuple[Tensor, ...]:
        return run(torch.rnn_relu, relu_step, input, (h_0,), batch_sizes, weights)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, grad_h: Tensor) -> tuple[Tensor | None, ...]:
        return gradients(ctx, _relu, grad_output, grad_h)


def tanh_step(z: Tensor, weights: Weights, h: Tensor) -> tuple[Tensor]:
    """h_t from x_t W_ihᵀ + b_ih and h_{t-1}."""
    return (torch.tanh(z + nn.functional.linear(h, weights.w_hh, weights.b_hh)),)


def relu_step(z: Tensor, weights: Weights, h: Tensor) -> tuple[Tensor]:
    """The same with φ = ReLU."""
    return (torch.relu(z + nn.functional.linear(h, weights.w_hh, weights.b_hh)),)


def _tanh(side: Side) -> Derived:
    return _through_time(side, 1 - side.output * side.output)


def _relu(side: Side) -> Derived:
    return _through_time(side, nonzero(side.output).to(side.output.dtype))


def _through_time(side: Side, local: Tensor) -> Derived:
    """δz of all rows, given φ′(z); in place of φ′(z) where that may be."""
    steps, w_hh = side.steps, side.weights.w_hh
    (eta,) = side.grad_final
    dz = local[:0]  # of the step after
    if side.write:
        for dh, factor in steps.backwards(side.grad_output, local):
            if len(dz) == len(dh):
                dh.addmm_(dz, w_hh)
            else:
                torch.mm(dz, w_hh, out=eta[: len(dz)])
                dh.add_(eta[: len(dh)])
            dz = factor.mul_(dh)
        delta_z = local
    else:
        deltas: list[Tensor] = []
        for grad_t, local_t in steps.backwards(side.grad_output, local):
            eta = extended(dz @ w_hh, eta) if deltas else eta
            dz = (grad_t + first(eta, grad_t.shape[0])) * local_t
            deltas.append(dz)
        delta_z = steps.join(deltas[::-1])
    if side.need_initial[0]:
        eta = extended(dz @ w_hh, eta)
    return Derived(
        delta_z, (eta,), delta_z.mT @ steps.before(side.output, *side.initial) if side.need[1] else None
    )


class RNN(Recurrent, nn.RNN):
    """`torch.nn.RNN` with a hand-written backward."""

    def _layer(
        self, input: Tensor, states: tuple[Tensor, ...], batch_sizes: BatchSizes, weights: list[Tensor | None]
    ) -> tuple[Tensor, ...]:
        function = TanhRNNFunction if self.nonlinearity == "tanh" else ReLURNNFunction
        output: tuple[Tensor, ...] = function.call(input, *states, batch_sizes, *weights)
        return output


def _samples() -> Iterable[Sample]:
    yield Sample(args=(2, 3), inputs=(randn(3, 2, 2), randn(1, 2, 3, seed=1)), label="tanh")
    yield Sample(
        args=(2, 2, 2),
        kwargs={"nonlinearity": "relu", "bidirectional": True, "batch_first": True},
        inputs=(randn(2, 2, 2),),
        label="relu, 2 layers, both directions",
    )
    yield Sample(args=(2, 2), kwargs={"bias": False}, inputs=(randn(3, 2),), label="unbatched, no bias")


SPECS = (
    LayerSpec(
        name="RNN",
        module=RNN,
        reference=nn.RNN,
        samples=_samples,
        saves="input and output of every layer",
        saved_bytes=saved_bytes,
        aliases=("rnn",),
        summary="Elman's recurrent network, tanh or ReLU",
    ),
)
