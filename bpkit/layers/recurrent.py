"""What RNN, LSTM and GRU share: layers, directions, packed and padded sequences, dropout between layers.

Every sequence is handled as torch packs it: the rows of step 0, then those of step 1, and so on, with
`batch_sizes` rows a step, never more than in the step before. A padded batch is the case in which all
steps have the same number. A Function of this family reads such rows forwards, one layer and one
direction at a time; the reverse direction is the same Function on rows in `reverse_order`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch._C import _are_functorch_transforms_active, _dispatch_tls_is_dispatch_key_included
from torch.nn.utils.rnn import PackedSequence

from bpkit.core.module import Handwritten
from bpkit.core.spec import nbytes
from bpkit.layers.dropout import dropout

BatchSizes = tuple[int, ...]
Weights = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]


def transformed() -> bool:
    """Whether `torch.func` or a `vmap` looks on: no place for torch's kernels and in-place writes.

    `torch.autograd.grad(is_grads_batched=True)` runs under torch's older vmap, which shows by its
    dispatch key alone.
    """
    if torch.compiler.is_compiling():
        return False
    return _are_functorch_transforms_active() or _dispatch_tls_is_dispatch_key_included("VmapMode")


def may_write() -> bool:
    """Whether a backward may write into tensors that it made itself: nothing is recorded or batched."""
    return not (torch.is_grad_enabled() or torch.compiler.is_compiling() or transformed())


def uniform(batch_sizes: BatchSizes) -> bool:
    """Whether all sequences are of one length."""
    return batch_sizes[:1] == batch_sizes[-1:]


def first(state: Tensor, rows: int) -> Tensor:
    """The first `rows` of `state`: the sequences that have not ended yet."""
    return state if state.shape[0] == rows else state[:rows]


def extended(state: Tensor, others: Tensor) -> Tensor:
    """`state`, and for the sequences that it does not have, the rows of `others`."""
    rows = state.shape[0]
    return state if rows == others.shape[0] else torch.cat((state, others[rows:]))


def states_before(steps: Sequence[Tensor], initial: Tensor) -> Tensor:
    """The state that each step starts from, `[rows, *]`, given the one that each ends in."""
    following = [step.shape[0] for step in steps[1:]]
    return torch.cat([initial, *(first(step, rows) for step, rows in zip(steps, following, strict=False))])


def affine(input: Tensor, weight: Tensor, b_ih: Tensor | None, b_hh: Tensor | None) -> Tensor:
    """Input W_ihᵀ + b_ih + b_hh, for all rows in one GEMM."""
    return nn.functional.linear(input, weight, None if b_ih is None or b_hh is None else b_ih + b_hh)


def run_kernel(
    kernel: Callable[..., tuple[Tensor, ...]],
    rows: Tensor,
    hx: Any,
    weights: Weights,
    batch_sizes: BatchSizes,
) -> tuple[Tensor, ...]:
    """One layer and direction by torch's own `kernel` (`torch.lstm`, ...), with `hx` `[1, B, H]`."""
    flat = [weight for weight in weights if weight is not None]
    settings = (weights[2] is not None, 1, 0.0, False, False)
    if uniform(batch_sizes):
        steps = rows.unflatten(0, (len(batch_sizes), _tuple(hx)[0].shape[1]))
        output, *states = kernel(steps, hx, flat, *settings, False)
        output = output.flatten(0, 1)
    else:
        output, *states = kernel(rows, torch.tensor(batch_sizes, device="cpu"), hx, flat, *settings)
    return output, *(state[0] for state in states)


def reverse_order(batch_sizes: BatchSizes, device: torch.device) -> Tensor:
    """Where to find the rows of each sequence read from its own end: `[rows]`, its own inverse."""
    sizes = torch.tensor(batch_sizes, dtype=torch.long, device=device)
    rows = sum(batch_sizes)
    step = torch.arange(len(batch_sizes), device=device).repeat_interleave(sizes, output_size=rows)
    starts = sizes.cumsum(0) - sizes
    sequence = torch.arange(rows, device=device) - starts[step]
    lengths = (sizes[:, None] > torch.arange(max(batch_sizes, default=0), device=device)).sum(0)
    return starts[lengths[sequence] - 1 - step] + sequence


class Recurrent(Handwritten, nn.RNNBase):
    """`forward` of a recurrent module, to be put ahead of its torch class.

    Class attributes:
        states: how many tensors a state is made of: 1 (`hx` is a tensor), or more (`hx` is a tuple).
    """

    states: ClassVar[int] = 1

    def _run(
        self,
        rows: Tensor,
        states: tuple[Tensor, ...],
        weights: Weights,
        order: Tensor | None,
        batch_sizes: BatchSizes,
    ) -> tuple[Tensor, ...]:
        """One layer in one direction: its output `[rows, H]`, and its last states `[batch, H]`."""
        raise NotImplementedError(f"{type(self).__name__} has to say how it runs one layer")

    def _zeros(self, input: Tensor, batch_sizes: Tensor | None) -> Any:
        """What `hx` is when it is not given."""
        return input.new_zeros(self.get_expected_hidden_size(input, batch_sizes))

    def forward(self, input: Tensor | PackedSequence, hx: Any = None) -> tuple[Any, Any]:
        """As torch's own: `(output, hx)`, each in the form in which it came."""
        if isinstance(input, PackedSequence):
            return self._packed(input, hx)
        given = () if hx is None else (hx,) if self.states == 1 else hx
        if input.dim() not in (2, 3) or any(state.dim() != input.dim() for state in given):
            result: tuple[Any, Any] = super().forward(input, hx)  # raises, in torch's words
            return result
        self._update_flat_weights()
        batch_axis = 0 if self.batch_first else 1
        batched = input.dim() == 3
        if not batched:
            input = input.unsqueeze(batch_axis)
            hx = _like(hx, [state.unsqueeze(1) for state in _tuple(hx)])
        hx = self._zeros(input, None) if hx is None else hx
        self.check_forward_args(input, hx, None)
        steps = input.transpose(0, 1) if self.batch_first else input
        length, batch = steps.shape[:2]
        rows, states = self._stack(steps.flatten(0, 1), _tuple(hx), (batch,) * length)
        output = rows.unflatten(0, (length, batch))
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
        self, rows: Tensor, states: Sequence[Tensor], batch_sizes: BatchSizes
    ) -> tuple[Tensor, list[Tensor]]:
        """All layers: `(rows [rows, in], states [layers·directions, batch, H])` to the same."""
        directions = 2 if self.bidirectional else 1
        order = reverse_order(batch_sizes, rows.device) if self.bidirectional else None
        initial = list(zip(*(state.unbind() for state in states), strict=True))
        final = []
        for layer in range(self.num_layers):
            outputs = []
            for direction in range(directions):
                k = layer * directions + direction
                output, *last = self._run(
                    rows, initial[k], self._weights(k), order if direction else None, batch_sizes
                )
                outputs.append(output)
                final.append(last)
            rows = torch.cat(outputs, -1) if self.bidirectional else outputs[0]
            if self.dropout and layer < self.num_layers - 1:
                rows = dropout(rows, self.dropout, self.training)
        if not self.bidirectional:
            rows = rows.clone()  # the Function keeps its output, and users write into theirs
        return rows, [torch.stack(each) for each in zip(*final, strict=True)]

    def _weights(self, k: int) -> Weights:
        """`w_ih, w_hh, b_ih, b_hh, w_hr` of layer and direction `k`, None for what it does not have."""
        w_ih, w_hh, *others = (getattr(self, name) for name in self._all_weights[k])
        b_ih, b_hh = others[:2] if self.bias else (None, None)
        return w_ih, w_hh, b_ih, b_hh, others[-1] if self.proj_size else None


def saved_bytes(module: nn.Module, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> int:
    """Bytes of every layer's input and output, of the initial states, of dropout's masks and the order."""
    assert isinstance(module, nn.RNNBase)
    input = inputs[0].data if isinstance(inputs[0], PackedSequence) else inputs[0]
    rows, size = input.shape[:-1].numel(), input.element_size()
    directions = 2 if module.bidirectional else 1
    wide = rows * directions * (module.proj_size or module.hidden_size)
    dropping = module.dropout > 0 and module.training
    between = module.num_layers - 1
    own_input = between * wide * (module.bidirectional or dropping)  # else it is the output of the one before
    return (
        nbytes(input, *_tuple(output[1]))
        + (module.num_layers * wide + own_input) * size
        + between * wide * dropping
        + rows * module.bidirectional * 8
    )


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
