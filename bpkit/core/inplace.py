"""Writing into a tensor that a graph knows: `inplace=True`, `relu_`, `x += y`.

    overwrite(input, value):     input ← value        ∂L/∂value = δ,   ∂L/∂input (what it was before) = 0

In place, whatever is computed is the out-of-place result and then this one node. It passes nothing on
to what `input` was, so what is behind that is not run with zeros; but where it is a view, torch writes
the zeros into the part of the base's gradient that the view was, and must be given them.

    keep(input):                 a copy, for a rule that reads what the write destroys        ∂L/∂input = δ

Saved: nothing.
Source: https://docs.pytorch.org/docs/stable/notes/autograd.html, "In-place operations with autograd".
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active

from bpkit.core.function import Function


class OverwriteFunction(Function):
    """`(input [*], value [*]) -> input`, which holds `value` from then on."""

    @staticmethod
    def forward(input: Tensor, value: Tensor) -> Tensor:
        input.copy_(value)
        return input  # not what copy_ returns: Dynamo asks for the argument itself

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, value = inputs
        ctx.mark_dirty(input)
        ctx.dtype = value.dtype
        # Only the plain engine can be asked what a view is.
        ctx.of_base = torch.compiler.is_compiling() or _are_functorch_transforms_active() or input._is_view()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, Tensor | None]:
        grad_input = grad_value = None
        if ctx.needs_input_grad[0] and ctx.of_base:
            grad_input = grad_output.new_zeros(()).expand_as(grad_output)
        if ctx.needs_input_grad[1]:
            grad_value = grad_output.to(ctx.dtype)
        return grad_input, grad_value

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], input: Tensor, value: Tensor
    ) -> tuple[Tensor, int | None]:
        into, of = in_dims
        if into is None:
            raise RuntimeError(
                "vmap: an in-place write of a mapped value into a tensor that is not mapped over is not "
                "possible; use the out-of-place operator, or map over the tensor as well"
            )
        value = value.unsqueeze(into).expand_as(input) if of is None else value.movedim(of, into)
        return OverwriteFunction.apply(input, value), into


class KeepFunction(Function):
    """`x [*] -> [*]`, a copy."""

    @staticmethod
    def forward(input: Tensor) -> Tensor:
        return input.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return grad_output


def overwrite(input: Tensor, value: Tensor) -> Tensor:
    """Write `value` into `input`.

    Args:
        input: `[*]`; written to, and returned.
        value: `[*]` of the same shape, computed from whatever; cast to `input`'s dtype.

    Returns:
        `input` itself, whose gradient flows to `value` from now on.

    Raises:
        RuntimeError: `input` is a leaf that requires a gradient, or shapes differ, in torch's words.
    """
    require_writable(input)
    if value.shape != input.shape:
        raise RuntimeError(
            f"output with shape {list(input.shape)} doesn't match the broadcast shape {list(value.shape)}"
        )
    # torch.compile forgets the backward of a Function that writes to an input of its graph (torch 2.13: the
    # gradient is the identity's); a copy_ it knows.
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return input.copy_(value)
    return OverwriteFunction.call(input, value)


def keep(input: Tensor) -> Tensor:
    """What `input` holds now, for a rule that still reads it after `overwrite`; itself where no rule will."""
    return KeepFunction.call(input) if torch.is_grad_enabled() else input


def require_writable(input: Tensor) -> None:
    """Refuse a leaf before it is written to: `mark_dirty` would after."""
    if input.requires_grad and torch.is_grad_enabled():
        if input.is_leaf:
            raise RuntimeError("a leaf Variable that requires grad is being used in an in-place operation.")
        base = input._base
        if base is not None and base.is_leaf and base.requires_grad:
            raise RuntimeError(
                "a view of a leaf Variable that requires grad is being used in an in-place operation."
            )
