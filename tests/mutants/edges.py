"""Sizes at which it breaks, found from an example that has none of them."""

from __future__ import annotations

import torch
from torch.autograd import Function

from .mutant import ROW, Mutant, RowSum, Scale, Sin, Softmax, X, row_sum, softmax


class WrongForSizeOne(Sin):
    @staticmethod
    def backward(ctx, grad_output):
        gradient = Sin.backward(ctx, grad_output)
        return 2 * gradient if 1 in gradient.shape else gradient


class SqueezesOne(RowSum):
    @staticmethod
    def forward(x):
        return x.sum(-1).squeeze()


class BeyondSixteenColumns(Softmax):
    @staticmethod
    def backward(ctx, grad_output):
        (y,) = ctx.saved_tensors
        first = slice(None, 16)
        dot = (grad_output[..., first] * y[..., first]).sum(-1, keepdim=True)
        return y * (grad_output - dot)


class ForwardBeyondSixteenColumns(RowSum):
    @staticmethod
    def forward(x):
        return x[..., :16].sum(-1)


class BeyondBlockOf128(Sin):
    @staticmethod
    def backward(ctx, grad_output):
        return within(Sin.backward(ctx, grad_output), 128)


class BeyondBlockOf1024(Sin):
    @staticmethod
    def backward(ctx, grad_output):
        return within(Sin.backward(ctx, grad_output), 1024)


def within(gradient, columns):
    """The gradient of the first columns, zeros for the others."""
    if gradient.dim() == 0:
        return gradient
    return torch.cat((gradient[..., :columns], torch.zeros_like(gradient[..., columns:])), -1)


class WholeBlocksTwice(RowSum):
    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return grad_output[..., None].expand_as(x) * (2 if x.dim() and x.shape[-1] % 16 == 0 else 1)


class PairsOnly(Sin):
    @staticmethod
    def forward(x):
        y = x.sin()
        if x.dim() and x.shape[-1] % 2:
            y = torch.cat((y[..., :-1], torch.zeros_like(y[..., -1:])), -1)
        return y


class VectorsOfFour(Sin):
    @staticmethod
    def backward(ctx, grad_output):
        gradient = Sin.backward(ctx, grad_output).reshape(-1)
        whole = gradient.numel() // 4 * 4
        kept = torch.cat((gradient[:whole], torch.zeros_like(gradient[whole:])))
        return kept.reshape(grad_output.shape)


class ManyRows(Scale):
    @staticmethod
    def backward(ctx, grad_output):
        x, row = ctx.saved_tensors
        return grad_output * row, (grad_output * x)[:64].sum_to_size(row.shape)


class OneLeadingAxis(Scale):
    @staticmethod
    def backward(ctx, grad_output):
        x, row = ctx.saved_tensors
        total = (grad_output * x).sum(0) if x.dim() > 1 else grad_output * x
        return grad_output * row, total if total.dim() <= row.dim() else total[0]


class SecondAxisForLast(Softmax):
    @staticmethod
    def forward(x):
        return x.softmax(min(1, x.dim() - 1))


class EmptyBatchRaises(RowSum):
    @staticmethod
    def forward(x):
        return x.sum(-1) * (x.numel() / x.numel())


class EmptyBatchIsNaN(Function):
    """The mean over rows that are there, summed: 0 of an empty batch."""

    @staticmethod
    def forward(x):
        return x.sum(0) / x.shape[0] * x.shape[0]

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output.expand_as(ctx.saved_tensors[0])


class ScalarForgotten(Sin):
    @staticmethod
    def backward(ctx, grad_output):
        gradient = Sin.backward(ctx, grad_output)
        return gradient if gradient.dim() else torch.zeros_like(gradient)


def column_sum(x):
    return x.sum(0)


MUTANTS = [
    Mutant(WrongForSizeOne, (X,), torch.sin, "sizes", story="an axis of size 1 taken for a broadcast one"),
    Mutant(SqueezesOne, (X,), row_sum, "sizes", story="squeeze() takes away a batch of one as well"),
    Mutant(
        BeyondSixteenColumns,
        (X,),
        softmax,
        "sizes",
        story="one vector register's worth of columns in a softmax",
    ),
    Mutant(
        BeyondSixteenColumns,
        (X,),
        None,
        "sizes",
        story="the same, with no reference to compare with",
    ),
    Mutant(
        ForwardBeyondSixteenColumns,
        (X,),
        row_sum,
        "sizes",
        story="the same in a forward, which its own backward does not follow",
    ),
    Mutant(BeyondBlockOf128, (X,), torch.sin, "sizes", story="right for one block alone"),
    Mutant(BeyondBlockOf1024, (X,), torch.sin, "sizes", story="a row longer than the threads of a block"),
    Mutant(
        WholeBlocksTwice,
        (X,),
        row_sum,
        "sizes",
        story="a size that fills its blocks exactly gets an empty one more",
    ),
    Mutant(
        PairsOnly,
        (X,),
        torch.sin,
        "sizes",
        story="a loop over pairs that drops the last of an odd row: amd/IRON#198",
    ),
    Mutant(
        VectorsOfFour,
        (X,),
        torch.sin,
        "sizes",
        story="the remainder of a vectorised loop: OpenNMT/CTranslate2#351, jax-ml/jax#27224",
    ),
    Mutant(ManyRows, (X, ROW), torch.mul, "sizes", story="a reduction over more rows than one block holds"),
    Mutant(
        OneLeadingAxis,
        (X, ROW),
        torch.mul,
        "sizes",
        story="sum(0) for a bias, from inputs of [batch, time, features]",
    ),
    Mutant(SecondAxisForLast, (X,), softmax, "sizes", story="axis 1 where the last one is meant"),
    Mutant(
        EmptyBatchRaises,
        (X,),
        row_sum,
        "sizes",
        story="a size of zero divides by zero: linkedin/Liger-Kernel#1289",
    ),
    Mutant(
        EmptyBatchIsNaN,
        (X,),
        column_sum,
        "sizes",
        story="an empty batch gives NaN for zero",
    ),
    Mutant(
        ScalarForgotten,
        (X,),
        torch.sin,
        "sizes",
        story="a launch grid of no blocks for a tensor without axes",
    ),
]
