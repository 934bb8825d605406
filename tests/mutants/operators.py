"""Operators of `torch.library`: what they declare, and what they do."""

from __future__ import annotations

import torch
from torch import Tensor

from .mutant import Mutant, X


def slope(ctx, grad_output):
    return grad_output * ctx.saved_tensors[0].cos()


def keep(ctx, inputs, output):
    ctx.save_for_backward(inputs[0])


@torch.library.custom_op("mutants::sin", mutates_args=())
def sin(x: Tensor) -> Tensor:
    """Right."""
    return x.sin()


sin.register_fake(torch.empty_like)
sin.register_autograd(slope, setup_context=keep)


@torch.library.custom_op("mutants::no_fake", mutates_args=())
def no_fake(x: Tensor) -> Tensor:
    return x.sin()


no_fake.register_autograd(slope, setup_context=keep)


@torch.library.custom_op("mutants::wrong_shape", mutates_args=())
def wrong_shape(x: Tensor) -> Tensor:
    return x.sum(-1)


wrong_shape.register_fake(lambda x: x.new_empty(x.shape[0], 1))
wrong_shape.register_autograd(
    lambda ctx, grad: grad[:, None].expand_as(ctx.saved_tensors[0]).clone(), setup_context=keep
)


@torch.library.custom_op("mutants::wrong_strides", mutates_args=())
def wrong_strides(x: Tensor) -> Tensor:
    return x.sin().T.contiguous().T


wrong_strides.register_fake(torch.empty_like)
wrong_strides.register_autograd(slope, setup_context=keep)


@torch.library.custom_op("mutants::wrong_dtype", mutates_args=())
def wrong_dtype(x: Tensor) -> Tensor:
    return x.sin()


wrong_dtype.register_fake(lambda x: torch.empty_like(x, dtype=torch.float32))
wrong_dtype.register_autograd(slope, setup_context=keep)


@torch.library.custom_op("mutants::undeclared_write", mutates_args=())
def undeclared_write(x: Tensor) -> Tensor:
    y = x.sin()
    x.zero_()
    return y


undeclared_write.register_fake(torch.empty_like)
undeclared_write.register_autograd(slope, setup_context=keep)


@torch.library.custom_op("mutants::alias", mutates_args=())
def alias(x: Tensor) -> Tensor:
    return x


alias.register_fake(torch.empty_like)
alias.register_autograd(lambda ctx, grad: grad.clone())


@torch.library.custom_op("mutants::five_times", mutates_args=())
def five_times(x: Tensor) -> Tensor:
    return x.sin()


five_times.register_fake(torch.empty_like)
five_times.register_autograd(lambda ctx, grad: 5 * slope(ctx, grad), setup_context=keep)


@torch.library.custom_op("mutants::packed_gradient", mutates_args=())
def packed_gradient(x: Tensor) -> Tensor:
    return x.sin()


def _packed(ctx, grad):
    (x,) = ctx.saved_tensors
    flat = torch.as_strided(grad, x.shape, x.stride(), 0) if any(grad.stride()) else grad
    return flat * x.cos()


packed_gradient.register_fake(torch.empty_like)
packed_gradient.register_autograd(_packed, setup_context=keep)


@torch.library.custom_op("mutants::no_gradient", mutates_args=())
def no_gradient(x: Tensor) -> Tensor:
    return x.sin()


no_gradient.register_fake(torch.empty_like)


def row_sum(x):
    return x.sum(-1)


MUTANTS = [
    Mutant(no_fake, (X,), torch.sin, "opcheck", story="no fake implementation, so nothing can trace it"),
    Mutant(wrong_shape, (X,), row_sum, "opcheck", story="a fake of another shape"),
    Mutant(wrong_dtype, (X,), torch.sin, "opcheck", story="a fake of another dtype"),
    Mutant(
        wrong_strides, (X,), torch.sin, "opcheck", story="a fake of other strides: pytorch/pytorch#149468"
    ),
    Mutant(
        undeclared_write,
        (X,),
        torch.sin,
        "opcheck",
        story="an argument written to that the schema does not name",
    ),
    Mutant(alias, (X,), torch.clone, "opcheck", story="an output that is an input"),
    Mutant(
        five_times,
        (X,),
        torch.sin,
        "parity",
        story="opcheck runs a backward, and looks at none of its numbers",
    ),
    Mutant(five_times, (X,), None, "gradcheck", story="the same, with no reference to compare with"),
    Mutant(
        packed_gradient,
        (X,),
        torch.sin,
        "layouts",
        story="a Triton operator under cat: pytorch/pytorch#195210",
    ),
    Mutant(no_gradient, (X,), torch.sin, "parity", story="registered without autograd"),
]
