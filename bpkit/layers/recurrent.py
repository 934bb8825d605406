"""What RNN, LSTM and GRU share: layers, directions, packed and padded sequences, dropout between layers.

A padded batch of sequences is `[T, B, *]`; a packed one is `[rows, *]` as torch packs it: the rows of
step 0, then those of step 1, and so on, with `batch_sizes` rows a step, never more than in the step
before. A Function of this family runs one layer in all its directions. The reverse direction is the
same equations over the same steps from the last to the first; in it sequences begin one after another,
where forwards they end. A state of all B sequences serves both: those that have not begun, or have
ended, wait in their rows of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch._C import _are_functorch_transforms_active, _dispatch_tls_is_dispatch_key_included
from torch.nn.utils.rnn import PackedSequence

from bpkit import ops
from bpkit.core.module import Handwritten
from bpkit.core.spec import nbytes
from bpkit.layers.dropout import dropout

BatchSizes = tuple[int, ...] | None  # of a packed batch; None if it is padded


class Weights(NamedTuple):
    """Of one direction of a layer, None for what it does not have; k is 1, 3 or 4 parts."""

    w_ih: Tensor  #                                                                         [kH, I]
    w_hh: Tensor  #                                                              [kH, H or P]
    b_ih: Tensor | None = None  #                                                              [kH]
    b_hh: Tensor | None = None  #                                                              [kH]
    w_hr: Tensor | None = None  # the projection's                                           [P, H]


EACH = len(Weights._fields)


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


def first(state: Tensor, rows: int) -> Tensor:
    """The first `rows` of `state`: the sequences that have such a step."""
    return state if state.shape[0] == rows else state[:rows]


def extended(state: Tensor, others: Tensor) -> Tensor:
    """`state`, and for the sequences that it does not have, the rows of `others`."""
    rows = state.shape[0]
    return state if rows == others.shape[0] else torch.cat((state, others[rows:]))


@dataclass(frozen=True)
class Steps:
    """How the rows `[rows, *]` of a layer fall into steps, in the order in which a direction takes them."""

    sizes: tuple[int, ...]
    reverse: bool

    def split(self, rows: Tensor) -> tuple[Tensor, ...]:
        """The rows of each step, first step first."""
        steps = rows.split(self.sizes)
        return steps[::-1] if self.reverse else steps

    def backwards(self, *each: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """The rows of each step in several tensors, last step first."""
        return zip(*(self.split(rows)[::-1] for rows in each), strict=True)

    def join(self, steps: Sequence[Tensor]) -> Tensor:
        """What `split` takes apart."""
        return torch.cat(tuple(steps[::-1] if self.reverse else steps))

    def before(self, rows: Tensor, initial: Tensor) -> Tensor:
        """The state that each step starts from, `[rows, *]`, given the one that each ends in."""
        count = self.sizes[0]
        if count == self.sizes[-1]:
            return torch.cat(
                (rows[count:], initial) if self.reverse else (initial, rows[: len(rows) - count])
            )
        state, states = initial[:0], []
        for step in self.split(rows):
            count = step.shape[0]
            states.append(state[:count] if count <= state.shape[0] else extended(state, initial[:count]))
            state = step
        return self.join(states)


def run_kernel(
    kernel: Callable[..., tuple[Tensor, ...]],
    input: Tensor,
    states: Sequence[Tensor],
    batch_sizes: BatchSizes,
    weights: Sequence[Tensor | None],
) -> tuple[Tensor, ...]:
    """A layer by torch's own `kernel` (`torch.lstm`, ...), which loops without Python: output, states."""
    flat = [weight for weight in weights if weight is not None]
    settings = (weights[2] is not None, 1, 0.0, False, len(weights) > EACH)
    hx = states[0] if len(states) == 1 else tuple(states)
    if batch_sizes is None:
        return kernel(input, hx, flat, *settings, False)
    return kernel(input, torch.tensor(batch_sizes, device="cpu"), hx, flat, *settings)


def run_steps(
    step: Callable[..., tuple[Tensor, ...]],
    input: Tensor,
    states: Sequence[Tensor],
    batch_sizes: BatchSizes,
    weights: Sequence[Tensor | None],
) -> tuple[Tensor, ...]:
    """A layer in plain algebra, for where the kernel cannot go: `step(x W_ihᵀ + b_ih, weights, *states)`."""
    outputs, final = [], []
    for direction, (own, steps) in enumerate(_directions(input, batch_sizes, weights)):
        state = [each[direction] for each in states]
        output = []
        for z_t in steps.split(nn.functional.linear(_rows(input), own.w_ih, own.b_ih)):
            new = step(z_t, own, *(first(each, z_t.shape[0]) for each in state))
            state = [extended(*pair) for pair in zip(new, state, strict=True)]
            output.append(new[0])
        outputs.append(steps.join(output))
        final.append(state)
    joined = torch.cat(outputs, -1)
    joined = joined.reshape(*input.shape[:-1], joined.shape[-1])
    return joined, *(torch.stack(each) for each in zip(*final, strict=True))


def _directions(
    input: Tensor, batch_sizes: BatchSizes, weights: Sequence[Any]
) -> Iterator[tuple[Weights, Steps]]:
    sizes = (input.shape[1],) * input.shape[0] if batch_sizes is None else batch_sizes
    for start in range(0, len(weights), EACH):
        yield Weights(*weights[start : start + EACH]), Steps(sizes, reverse=start > 0)


class Side(NamedTuple):
    """One direction of a layer as its backward sees it. Gradients are its own to write into, if `write`."""

    steps: Steps
    weights: Weights
    input: Tensor  #                                                                      [rows, I]
    output: Tensor  #                                                                     [rows, H]
    initial: tuple[Tensor, ...]  # the states before the first step,                    each [B, H]
    grad_output: Tensor  #                                                                [rows, H]
    grad_final: tuple[Tensor, ...]  # of the states after the last step,                each [B, H]
    need_initial: tuple[bool, ...]
    need: Sequence[bool]  # for each of the weights
    write: bool


class Derived(NamedTuple):
    """What a page derives for one `Side`, None for what is not needed; the rest follows from δz alone."""

    dz: Tensor  # ∂L/∂(x W_ihᵀ + b_ih)                                                   [rows, kH]
    initial: Sequence[Tensor]
    w_hh: Tensor | None
    b_hh: Tensor | None = None  # None as well where it is b_ih's
    w_hr: Tensor | None = None


def keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Save what `gradients` reads, of `(input, *states, batch_sizes, *weights)`."""
    ctx.states = next(place for place, each in enumerate(inputs) if not isinstance(each, Tensor)) - 1
    ctx.batch_sizes = inputs[ctx.states + 1]
    ctx.save_for_backward(*(each for place, each in enumerate(inputs) if place != ctx.states + 1), output)


def gradients(
    ctx: Any, derive: Callable[[Side], Derived], grad_output: Tensor, *grad_final: Tensor
) -> tuple[Tensor | None, ...]:
    """∂L/∂ of all that was given to the forward, from what `derive` finds for each direction.

    ∂L/∂x = δz W_ih     ∂L/∂W_ih = Σₙ δz_n ⊗ x_n     ∂L/∂b_ih = Σₙ δz_n          n: all rows
    """
    input, *others, output = ctx.saved_tensors
    states, weights = others[: ctx.states], others[ctx.states :]
    need_input, *need_others = ctx.needs_input_grad
    need_states, needs = tuple(need_others[: ctx.states]), need_others[ctx.states + 1 :]
    write = may_write()
    size = output.shape[-1] * EACH // len(weights)
    rows, out_rows, grad_rows = _rows(input), _rows(output), _rows(grad_output)
    grad_input, initial, result = None, [], []
    for direction, (own, steps) in enumerate(_directions(input, ctx.batch_sizes, weights)):
        part = direction * size, size
        need = needs[direction * EACH : (direction + 1) * EACH]
        grads = [grad_rows.narrow(1, *part), *(each[direction] for each in grad_final)]
        if write:
            grads = [each.clone(memory_format=torch.contiguous_format) for each in grads]
        found = derive(
            Side(
                steps=steps,
                weights=own,
                input=rows,
                output=out_rows.narrow(1, *part),
                initial=tuple(each[direction] for each in states),
                grad_output=grads[0],
                grad_final=tuple(grads[1:]),
                need_initial=need_states,
                need=need,
                write=write,
            )
        )
        bias = found.dz.sum(0) if need[2] or (need[3] and found.b_hh is None) else None
        of_weights = (
            found.dz.mT @ rows if need[0] else None,
            found.w_hh,
            bias,
            bias if found.b_hh is None else found.b_hh,
            found.w_hr,
        )
        result += [each if wanted else None for each, wanted in zip(of_weights, need, strict=True)]
        initial.append(found.initial)
        if need_input:
            of_input = found.dz @ own.w_ih
            grad_input = of_input if grad_input is None else grad_input + of_input
    of_states = (
        torch.stack(each) if wanted else None
        for each, wanted in zip(zip(*initial, strict=True), need_states, strict=True)
    )
    return None if grad_input is None else grad_input.reshape(input.shape), *of_states, None, *result


def _rows(sequence: Tensor) -> Tensor:
    """A padded or packed batch as rows."""
    return sequence.reshape(-1, sequence.shape[-1])


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
