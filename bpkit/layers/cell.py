"""What RNNCell, LSTMCell and GRUCell share: one step of a recurrent network.

The equations of a cell and their derivatives are those of its sequence at one step t, where η_t and ε_t are
the gradients of the cell's own outputs. With a = x W_ihᵀ + b_ih and e = h W_hhᵀ + b_hh,

    ∂L/∂x = δa W_ih     ∂L/∂W_ih = Σₙ δa_n ⊗ x_n     ∂L/∂b_ih = Σₙ δa_n          n: the batch
    ∂L/∂h = δe W_hh     ∂L/∂W_hh = Σₙ δe_n ⊗ h_n     ∂L/∂b_hh = Σₙ δe_n          (GRU: + δh u in ∂L/∂h)

and δa = δe but in the third part of GRU's.

A sequence computes its gates again in the backward; a single step would pay two GEMMs more for that, of six,
so cells save them, as torch does. When the backward itself is recorded they are computed again all the same:
the saved gates do not know of the inputs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from bpkit.core.module import Handwritten
from bpkit.core.spec import Sample, SavedBytes, nbytes, randn
from bpkit.layers.recurrence import Weights

Gradients = tuple[Tensor | None, ...]


def products(need: tuple[bool, ...], input: Tensor, h: Tensor, da: Tensor, de: Tensor) -> Gradients:
    """∂L/∂ of the weights and biases."""
    w_ih, w_hh, b_ih, b_hh = need
    bias = da.sum(0) if b_ih or (b_hh and de is da) else None
    return (
        da.mT @ input if w_ih else None,
        de.mT @ h if w_hh else None,
        bias if b_ih else None,
        (bias if de is da else de.sum(0)) if b_hh else None,
    )


class Cell(Handwritten, nn.RNNCellBase):
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


def samples() -> Iterable[Sample]:
    """Of any cell: with a state and without, unbatched."""
    yield Sample(args=(3, 4), inputs=(randn(5, 3), randn(5, 4, seed=1)))
    yield Sample(args=(3, 4), kwargs={"bias": False}, inputs=(randn(2, 3),), label="no bias, no state")
    yield Sample(args=(3, 4), inputs=(randn(3), randn(4, seed=1)), label="unbatched")


def saved_bytes(parts: int) -> SavedBytes:
    """Bytes of the input, the states, and `parts` [B, H] more."""

    def count(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> int:
        new = output if isinstance(output, tuple) else (output,)
        return nbytes(inputs[0], *new) + parts * nbytes(new[0])

    return count
