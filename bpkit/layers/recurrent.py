"""What the modules RNN, LSTM and GRU share: layers one on another, dropout between, torch's arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from bpkit import ops
from bpkit.core.module import Handwritten
from bpkit.core.refusal import refuse
from bpkit.core.spec import nbytes
from bpkit.layers.dropout import dropout
from bpkit.layers.recurrence import BatchSizes, Weights


class Recurrent(Handwritten, nn.RNNBase):
    """`forward` of a recurrent module, to be put ahead of its torch class.

    Class attributes:
        states: how many tensors a state is made of: 1 (`hx` is a tensor), or more (`hx` is a tuple).
    """

    states: ClassVar[int] = 1

    def _layer(
        self, input: Tensor, states: tuple[Tensor, ...], batch_sizes: BatchSizes, weights: list[Tensor | None]
    ) -> tuple[Tensor, ...]:
        """One layer: its output `[T, B, D·H]` or `[rows, D·H]`, and its last states `[D, B, H]`."""
        raise NotImplementedError(f"{type(self).__name__} has to say how it runs one layer")

    def _zeros(self, input: Tensor, batch_sizes: Tensor | None) -> Any:
        """What `hx` is when it is not given."""
        return input.new_zeros(self.get_expected_hidden_size(input, batch_sizes))

    def permute_hidden(self, hx: Any, permutation: Tensor | None) -> Any:
        """`hx` with its sequences in another order."""
        if permutation is None:
            return hx
        return _like(hx, [ops.index_select(state, 1, permutation) for state in _tuple(hx)])

    def forward(self, input: Tensor | PackedSequence, hx: Any = None) -> tuple[Any, Any]:
        """As torch's own: `(output, hx)`, each in the form in which it came."""
        if isinstance(input, PackedSequence):
            return self._packed(input, hx)
        given = () if hx is None else (hx,) if self.states == 1 else hx
        if input.dim() not in (2, 3) or any(state.dim() != input.dim() for state in given):
            refuse(super().forward, input, hx)
        self._update_flat_weights()
        batch_axis = 0 if self.batch_first else 1
        batched = input.dim() == 3
        if not batched:
            input = input.unsqueeze(batch_axis)
            hx = _like(hx, [state.unsqueeze(1) for state in _tuple(hx)])
        hx = self._zeros(input, None) if hx is None else hx
        self.check_forward_args(input, hx, None)
        steps = input.transpose(0, 1) if self.batch_first else input
        output, states = self._stack(steps, _tuple(hx), None)
        output = output.transpose(0, 1) if self.batch_first else output
        if not batched:
            output, states = output.squeeze(batch_axis), [state.squeeze(1) for state in states]
        return output, _like(hx, states)

    def _packed(self, input: PackedSequence, hx: Any) -> tuple[PackedSequence, Any]:
        data, batch_sizes, sorted_indices, unsorted_indices = input
        self._update_flat_weights()
        hx = self._zeros(data, batch_sizes) if hx is None else self.permute_hidden(hx, sorted_indices)
        self.check_forward_args(data, hx, batch_sizes)
        rows, states = self._stack(data, _tuple(hx), tuple(batch_sizes.tolist()))
        output = PackedSequence(rows, batch_sizes, sorted_indices, unsorted_indices)
        return output, self.permute_hidden(_like(hx, states), unsorted_indices)

    def _stack(
        self, sequence: Tensor, states: Sequence[Tensor], batch_sizes: BatchSizes
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """All layers: a padded or packed batch and the states `[layers·D, B, H]` to the same."""
        directions = 2 if self.bidirectional else 1
        initial = list(zip(*(state.split(directions) for state in states), strict=True))
        final = []
        for layer in range(self.num_layers):
            weights = [w for k in range(directions) for w in self._weights(layer * directions + k)]
            sequence, *last = self._layer(sequence, initial[layer], batch_sizes, weights)
            final.append(last)
            if self.dropout and layer < self.num_layers - 1:
                sequence = dropout(sequence, self.dropout, self.training)
        sequence = ops.clone(sequence)  # the Function keeps its output, and users write into theirs
        return sequence, final[0] if len(final) == 1 else [ops.cat(each) for each in zip(*final, strict=True)]

    def _weights(self, k: int) -> Weights:
        """The weights of layer and direction `k`."""
        w_ih, w_hh, *others = (getattr(self, name) for name in self._all_weights[k])
        b_ih, b_hh = others[:2] if self.bias else (None, None)
        return Weights(w_ih, w_hh, b_ih, b_hh, others[-1] if self.proj_size else None)


def saved_bytes(module: nn.Module, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> int:
    """Bytes of every layer's input and output, of the initial states, and of dropout's masks."""
    assert isinstance(module, nn.RNNBase)
    input = inputs[0].data if isinstance(inputs[0], PackedSequence) else inputs[0]
    directions = 2 if module.bidirectional else 1
    wide = input.shape[:-1].numel() * directions * (module.proj_size or module.hidden_size)
    dropped = wide * (module.num_layers - 1) * (module.dropout > 0 and module.training)
    size = input.element_size()
    # Without dropout the input of a layer is the very output of the one before.
    return nbytes(input, *_tuple(output[1])) + (module.num_layers * wide + dropped) * size + dropped


def _tuple(hx: Any) -> tuple[Tensor, ...]:
    """The tensors of an `hx` that is None, one tensor, or several."""
    if hx is None:
        return ()
    return (hx,) if isinstance(hx, Tensor) else tuple(hx)


def _like(hx: Any, states: Sequence[Tensor]) -> Any:
    """`states` in the form of `hx`."""
    if hx is None:
        return None
    return states[0] if isinstance(hx, Tensor) else tuple(states)
