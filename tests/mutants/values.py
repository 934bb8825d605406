"""Numbers that are wrong: everywhere, in a region, in one precision, at the edge of the domain."""

from __future__ import annotations

import torch
from torch.autograd import Function
from torch.nn import functional as F

from .mutant import (
    ROW,
    Exp,
    Mutant,
    RowSum,
    Scale,
    Sin,
    SinCos,
    Softmax,
    W,
    X,
    randn,
    row_sum,
    sin_cos,
    softmax,
)


class Scaled(Sin):
    @staticmethod
    def backward(ctx, grad_output):
        return 1.001 * Sin.backward(ctx, grad_output)


class WrongValue(Sin):
    @staticmethod
    def forward(x):
        return x.sin() + 1e-10


class WrongTail(Sin):
    @staticmethod
    def backward(ctx, grad_output):
        gradient = Sin.backward(ctx, grad_output)
        return torch.where(ctx.saved_tensors[0].abs() > 3, 0.9 * gradient, gradient)


class WrongLowerTail(Sin):
    @staticmethod
    def backward(ctx, grad_output):
        gradient = Sin.backward(ctx, grad_output)
        return torch.where(ctx.saved_tensors[0] < -3, gradient + 1e-8, gradient)


class WrongFarTail(Sin):
    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return torch.where((x > 12) & (x < 40), 0.0, Sin.backward(ctx, grad_output))


class WrongNearZero(Sin):
    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return torch.where(x.abs() < 1e-3, 0.0, Sin.backward(ctx, grad_output))


class SummedOverWrongAxis(Scale):
    @staticmethod
    def backward(ctx, grad_output):
        x, row = ctx.saved_tensors
        return grad_output * row, (grad_output * x).mean(0)


class TermDropped(Softmax):
    @staticmethod
    def backward(ctx, grad_output):
        return grad_output * ctx.saved_tensors[0]


class FirstGradientForAll(RowSum):
    @staticmethod
    def backward(ctx, grad_output):
        return grad_output.reshape(-1)[0].expand_as(ctx.saved_tensors[0])


class WeightForgotten(Scale):
    @staticmethod
    def backward(ctx, grad_output):
        return grad_output * ctx.saved_tensors[1], None


class SecondOutputForgotten(SinCos):
    @staticmethod
    def backward(ctx, grad_sin, grad_cos):
        return grad_sin * ctx.saved_tensors[0].cos()


def detached(x):
    return x * x.detach()


class WrongInFloat32(Sin):
    @staticmethod
    def backward(ctx, grad_output):
        gradient = Sin.backward(ctx, grad_output)
        return 1.001 * gradient if gradient.dtype is torch.float32 else gradient


class WrongInFloat32BeyondColumns(Sin):
    @staticmethod
    def backward(ctx, grad_output):
        gradient = Sin.backward(ctx, grad_output)
        wide = gradient.dim() > 0 and gradient.shape[-1] > 64
        return 1.001 * gradient if gradient.dtype is torch.float32 and wide else gradient


class ThroughBfloat16(Sin):
    @staticmethod
    def forward(x):
        return x.bfloat16().sin().to(x.dtype) if x.dtype is torch.float32 else x.sin()


class AccumulatesLow(RowSum):
    @staticmethod
    def forward(x):
        total = x.new_zeros(x.shape[:-1])
        for column in x.unbind(-1):
            total = total + column
        return total


class BackwardAccumulatesLow(Scale):
    @staticmethod
    def backward(ctx, grad_output):
        x, row = ctx.saved_tensors
        total = torch.zeros_like(row)
        for each in (grad_output * x).reshape(-1, *row.shape).unbind(0):
            total = total + each
        return grad_output * row, total


class RootMeanSquare(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        r = (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
        return grad_output * r - x * r**3 * (grad_output * x).mean(-1, keepdim=True)


class BackwardOverflows(Sin):
    """A detour through numbers a thousand times as large."""

    @staticmethod
    def backward(ctx, grad_output):
        return Sin.backward(ctx, grad_output * 1000) / 1000


class NaiveSoftplus(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return (1 + x.exp()).log()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output * ctx.saved_tensors[0].sigmoid()


class SaturatedSoftplus(NaiveSoftplus):
    @staticmethod
    def forward(x):
        return F.softplus(x)

    @staticmethod
    def backward(ctx, grad_output):
        e = ctx.saved_tensors[0].exp()
        return grad_output * e * (1 + e).reciprocal()


class NaiveLogSumExp(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.exp().sum(-1).log()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output[..., None] * ctx.saved_tensors[0].softmax(-1)


class Norm(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.square().sum(-1).sqrt()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    def backward(ctx, grad_output):
        x, norm = ctx.saved_tensors
        return (grad_output / norm)[..., None] * x


class TiesTwice(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.amax(-1)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    def backward(ctx, grad_output):
        x, largest = ctx.saved_tensors
        return grad_output[..., None] * (x == largest[..., None])


class TiesToTheFirst(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, w):
        return torch.maximum(x, w)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad_output):
        x, w = ctx.saved_tensors
        return grad_output * (x >= w), grad_output * (x < w)


class SwallowsNaN(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return torch.where(x > 0, x, 0.0)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output * (ctx.saved_tensors[0] > 0)


class GradientSwallowsNaN(Exp):
    @staticmethod
    def backward(ctx, grad_output):
        return Exp.backward(ctx, grad_output).nan_to_num(0.0)


class SlopeAtZero(SwallowsNaN):
    @staticmethod
    def forward(x):
        return x.relu()

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output * (ctx.saved_tensors[0] >= 0)


CACHE: dict[torch.Size, torch.Tensor] = {}


class StaleCache(Sin):
    @staticmethod
    def setup_context(ctx, inputs, output):
        (x,) = inputs
        key = (x.shape, x.dtype)
        if key not in CACHE:
            CACHE[key] = x.detach().cos()
        ctx.key = key

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output * CACHE[ctx.key]


def root_mean_square(x):
    return F.rms_norm(x, x.shape[-1:], eps=1e-6)


def log_sum_exp(x):
    return x.logsumexp(-1)


def largest(x):
    return x.amax(-1)


def norm(x):
    return torch.linalg.vector_norm(x, dim=-1)


POSITIVE = randn(4, 6, seed=3).abs()

MUTANTS = [
    Mutant(
        Scaled, (X,), torch.sin, "parity", story="a constant that is nearly right: gradcheck lets 0.1 % pass"
    ),
    Mutant(Scaled, (X,), None, "gradcheck", story="the same, with no reference to compare with"),
    Mutant(WrongValue, (X,), torch.sin, "parity", story="an epsilon where the mathematics has none"),
    Mutant(WrongTail, (X,), torch.sin, "parity", story="a polynomial used beyond the range it was fitted on"),
    Mutant(WrongTail, (X,), None, "gradcheck", story="the same, with no reference to compare with"),
    Mutant(WrongLowerTail, (X,), torch.sin, "parity", story="an asymptote that is right on one side alone"),
    Mutant(
        WrongFarTail,
        (X,),
        torch.sin,
        "extremes",
        story="wrong between two thresholds alone: tenstorrent/tt-metal#56397",
    ),
    Mutant(WrongNearZero, (X,), torch.sin, "parity", story="small values flushed to zero"),
    Mutant(
        SummedOverWrongAxis, (X, ROW), torch.mul, "parity", story="a mean over the batch where a sum belongs"
    ),
    Mutant(TermDropped, (X,), softmax, "parity", story="the diagonal of the Jacobian alone"),
    Mutant(
        FirstGradientForAll,
        (X,),
        row_sum,
        "parity",
        story="a kernel that loads grad_output[0] for all rows: linkedin/Liger-Kernel#1298",
    ),
    Mutant(
        WeightForgotten,
        (X, ROW),
        torch.mul,
        "parity",
        story="None for the weight of an RMSNorm: unslothai/unsloth#4533",
    ),
    Mutant(SecondOutputForgotten, (X,), sin_cos, "parity", story="only the first grad_output is used"),
    Mutant(detached, (X,), torch.square, "parity", story="a factor that hides behind detach()"),
    Mutant(detached, (X,), None, "gradcheck", story="the same, with no reference to compare with"),
    Mutant(
        WrongInFloat32,
        (X,),
        torch.sin,
        "precision",
        story="a path of its own for float32, which gradcheck never takes",
    ),
    Mutant(
        WrongInFloat32BeyondColumns,
        (X,),
        torch.sin,
        "precision",
        story="float32 has vectors of another width than float64",
    ),
    Mutant(
        ThroughBfloat16,
        (X,),
        torch.sin,
        "precision",
        story="a lookup table kept in a lower dtype",
    ),
    Mutant(
        AccumulatesLow,
        (X,),
        row_sum,
        "precision",
        story="sums kept in bfloat16 saturate at 256: pytorch/executorch#20089",
    ),
    Mutant(
        BackwardAccumulatesLow,
        (X, ROW),
        torch.mul,
        "precision",
        story="an embedding's gradient accumulated in half: apache/mxnet#17703",
    ),
    Mutant(
        RootMeanSquare,
        (X,),
        root_mean_square,
        "precision",
        story="squares overflow in float16: pytorch/pytorch#133085",
    ),
    Mutant(
        BackwardOverflows,
        (X,),
        torch.sin,
        "precision",
        story="a scaled loss overflows inside a backward in float16",
    ),
    Mutant(NaiveSoftplus, (X,), F.softplus, "extremes", story="exp before log: tracel-ai/burn#5373"),
    Mutant(
        SaturatedSoftplus,
        (X,),
        F.softplus,
        "extremes",
        story="inf times 1/inf in the backward: tenstorrent/tt-metal#56397",
    ),
    Mutant(
        NaiveLogSumExp,
        (X,),
        log_sum_exp,
        "extremes",
        story="exponentials without the maximum taken off: FluxML/NNlib.jl#68",
    ),
    Mutant(Norm, (X,), norm, "extremes", story="0/0 at a row of zeros: pytorch/pytorch#2421"),
    Mutant(
        TiesTwice,
        (X,),
        largest,
        "extremes",
        story="every tied maximum gets the whole gradient: Theano/Theano#4568",
    ),
    Mutant(
        TiesToTheFirst,
        (X, W),
        torch.maximum,
        "extremes",
        story="a tie of two tensors is not split: pytorch/pytorch#56734",
    ),
    Mutant(SwallowsNaN, (X,), torch.relu, "extremes", story="relu(NaN) is 0: pytorch/pytorch#7999"),
    Mutant(
        GradientSwallowsNaN, (X,), torch.exp, "extremes", story="nan_to_num in a backward hides a divergence"
    ),
    Mutant(SlopeAtZero, (X,), torch.relu, "extremes", story="slope 1 at exactly zero, where padding lies"),
    Mutant(
        StaleCache,
        (X,),
        torch.sin,
        "parity",
        story="a cache whose key leaves out what matters: lucidrains/rotary-embedding-torch#11",
    ),
]
