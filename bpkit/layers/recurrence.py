"""One recurrent layer in all its directions, over packed or padded sequences: what RNN, LSTM and GRU share.

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
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bpkit.core.holomorphic import conjugates
from bpkit.core.transforms import may_write, transformed

BatchSizes = tuple[int, ...] | None  # of a packed batch; None if it is padded


class Weights(NamedTuple):
    """Of one direction of a layer, None for what it does not have; k is 1, 3 or 4 parts."""

    w_ih: Tensor  #                                                                         [kH, I]
    w_hh: Tensor  #                                                              [kH, H or P]
    b_ih: Tensor | None = None  #                                                              [kH]
    b_hh: Tensor | None = None  #                                                              [kH]
    w_hr: Tensor | None = None  # the projection's                                           [P, H]


EACH = len(Weights._fields)


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


def run(
    kernel: Callable[..., tuple[Tensor, ...]] | None,
    step: Callable[..., tuple[Tensor, ...]],
    input: Tensor,
    states: Sequence[Tensor],
    batch_sizes: BatchSizes,
    weights: Sequence[Tensor | None],
) -> tuple[Tensor, ...]:
    """The output of a layer, and its last states.

    Args:
        kernel: torch's own (`torch.lstm`, ...), which loops without Python; None if none is to be used.
        step: `(x_t W_ihᵀ + b_ih, weights, *states) -> states`, for where the kernel cannot go.
        input: `[T, B, I]`, or packed `[rows, I]`.
        states: before the first step, `[D, B, H]` each.
        batch_sizes: of a packed input.
        weights: the five `Weights` of each direction.
    """
    if kernel is None or transformed():
        return _by_steps(step, input, states, batch_sizes, weights)
    flat = [weight for weight in weights if weight is not None]
    settings = (weights[2] is not None, 1, 0.0, False, len(weights) > EACH)
    hx = states[0] if len(states) == 1 else tuple(states)
    if batch_sizes is None:
        return kernel(input, hx, flat, *settings, False)
    return kernel(input, torch.tensor(batch_sizes, device="cpu"), hx, flat, *settings)


def _by_steps(
    step: Callable[..., tuple[Tensor, ...]],
    input: Tensor,
    states: Sequence[Tensor],
    batch_sizes: BatchSizes,
    weights: Sequence[Tensor | None],
) -> tuple[Tensor, ...]:
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
    input, *others, output = conjugates(ctx.saved_tensors)
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
