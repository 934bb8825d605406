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
from bpkit.core.spec import LayerSpec, Sample, randn
from bpkit.layers.recurrent import (
    BatchSizes,
    Recurrent,
    Weights,
    affine,
    extended,
    first,
    run_kernel,
    saved_bytes,
    states_before,
    transformed,
)


class RNNFunction(Function):
    """One layer in one direction: `(x [rows, I], h_0 [B, H], ...)` to output `[rows, H]`, h_n `[B, H]`.

    `rows` are packed by step, `batch_sizes` to a step. `order` is None, or the order in which to read
    them (and to write the output), which must be its own inverse.
    """

    autocast = {"cpu": "lower", "cuda": "lower"}

    @staticmethod
    def forward(
        input: Tensor,
        h_0: Tensor,
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor | None,
        b_hh: Tensor | None,
        order: Tensor | None,
        batch_sizes: BatchSizes,
        nonlinearity: str,
    ) -> tuple[Tensor, Tensor]:
        rows = input if order is None else input[order]
        run = _steps if transformed() else _kernel
        output, h_n = run(rows, h_0, (w_ih, w_hh, b_ih, b_hh, None), batch_sizes, nonlinearity)
        return output if order is None else output[order], h_n

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        input, h_0, w_ih, w_hh, _, _, order, ctx.batch_sizes, ctx.nonlinearity = inputs
        need = ctx.needs_input_grad
        ctx.save_for_backward(
            input if need[2] else None,
            h_0 if need[3] else None,
            w_ih if need[0] else None,
            w_hh,
            order,
            output[0],
        )

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, grad_h: Tensor) -> tuple[Tensor | None, ...]:
        input, h_0, w_ih, w_hh, order, output = ctx.saved_tensors
        sizes, need = ctx.batch_sizes, ctx.needs_input_grad
        if order is not None:
            output, grad_output = output[order], grad_output[order]
        local = 1 - output * output if ctx.nonlinearity == "tanh" else (output > 0).to(output.dtype)  # φ′

        eta = grad_h[:0]
        delta_z: list[Tensor] = []
        for grad_t, local_t in zip(
            reversed(grad_output.split(sizes)), reversed(local.split(sizes)), strict=True
        ):
            if delta_z:
                eta = delta_z[-1] @ w_hh
            dh = grad_t + extended(eta, first(grad_h, grad_t.shape[0]))
            delta_z.append(dh * local_t)

        dz = torch.cat(delta_z[::-1])  #                                                   [rows, H]
        grad_input = grad_w_ih = grad_w_hh = None
        if need[0]:
            grad_input = dz @ w_ih if order is None else (dz @ w_ih)[order]
        if need[2]:
            grad_w_ih = dz.mT @ (input if order is None else input[order])
        if need[3]:
            grad_w_hh = dz.mT @ states_before(output.split(sizes), h_0)
        bias = dz.sum(0) if need[4] or need[5] else None
        return (
            grad_input,
            delta_z[-1] @ w_hh if need[1] else None,
            grad_w_ih,
            grad_w_hh,
            bias if need[4] else None,
            bias if need[5] else None,
            None,
            None,
            None,
        )


def _steps(
    rows: Tensor, h: Tensor, weights: Weights, batch_sizes: BatchSizes, nonlinearity: str
) -> tuple[Tensor, Tensor]:
    """The forward in plain algebra, for where torch's kernel cannot go (`torch.func`)."""
    w_ih, w_hh, b_ih, b_hh, _ = weights
    phi = torch.tanh if nonlinearity == "tanh" else torch.relu
    outputs = []
    for x_t in affine(rows, w_ih, b_ih, b_hh).split(batch_sizes):
        h_t = phi(x_t + first(h, x_t.shape[0]) @ w_hh.mT)
        outputs.append(h_t)
        h = extended(h_t, h)
    return torch.cat(outputs), h


def _kernel(
    rows: Tensor, h: Tensor, weights: Weights, batch_sizes: BatchSizes, nonlinearity: str
) -> tuple[Tensor, Tensor]:
    """The forward by torch's kernel, which loops without Python."""
    kernel = torch.rnn_tanh if nonlinearity == "tanh" else torch.rnn_relu
    output, h_n = run_kernel(kernel, rows, h[None], weights, batch_sizes)
    return output, h_n


class RNN(Recurrent, nn.RNN):
    """`torch.nn.RNN` with a hand-written backward."""

    def _run(
        self,
        rows: Tensor,
        states: tuple[Tensor, ...],
        weights: Weights,
        order: Tensor | None,
        batch_sizes: BatchSizes,
    ) -> tuple[Tensor, ...]:
        output: tuple[Tensor, ...] = RNNFunction.call(
            rows, *states, *weights[:4], order, batch_sizes, self.nonlinearity
        )
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
