"""The ways of running: vmap, torch.func, forward mode, checkpointing, autocast, compile, and randomness."""

from __future__ import annotations

import numpy as np
import torch
from torch.autograd import Function
from torch.nn import functional as F

from .mutant import ROW, Mutant, Product, Scale, Sin, SinCos, W, X, randn, sin_cos


class WrongUnderVmap(Sin):
    generate_vmap_rule = False

    @staticmethod
    def vmap(info, in_dims, x):
        return Sin.apply(x), 0  # right for in_dim 0 alone


class MiddleInDim(Sin):
    generate_vmap_rule = False

    @staticmethod
    def vmap(info, in_dims, x):
        if in_dims[0] == 1:
            return Sin.apply(x).transpose(0, 1).flip(0), 0
        return Sin.apply(x), in_dims[0]


class SecondUnbatched(Product):
    """Takes the second argument for batched wherever the first is."""

    generate_vmap_rule = False

    @staticmethod
    def vmap(info, in_dims, x, w):
        x = x if in_dims[0] is None else x.movedim(in_dims[0], 0)
        w = w[:1] if in_dims[1] is None and w.shape[0] == x.shape[1] else w
        w = w if in_dims[1] is None else w.movedim(in_dims[1], 0)
        return Product.apply(x, w), 0


class MixedInDims(Product):
    """Moves both batch axes by the first one's place."""

    generate_vmap_rule = False

    @staticmethod
    def vmap(info, in_dims, x, w):
        if None in in_dims:
            x, w = (t if d is None else t.movedim(d, 0) for t, d in zip((x, w), in_dims, strict=True))
            return Product.apply(x, w), 0
        if in_dims[0] != in_dims[1]:
            w = w.movedim(in_dims[1], 0).flip(0).movedim(0, in_dims[0])
        return Product.apply(x, w), in_dims[0]


class SampleGradient(Function):
    """The backward of `Scale` for the row, with a batching rule that gives every sample the batch's sum."""

    @staticmethod
    def forward(grad_output, x):
        return (grad_output * x).sum(0)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        grad_output, x = ctx.saved_tensors
        return (grad * x).expand_as(grad_output), (grad * grad_output).expand_as(x)

    @staticmethod
    def vmap(info, in_dims, grad_output, x):
        g, x = (
            t.expand(info.batch_size, *t.shape) if d is None else t.movedim(d, 0)
            for t, d in zip((grad_output, x), in_dims, strict=True)
        )
        return (g * x).sum((0, 1)).expand(info.batch_size, *x.shape[2:]), 0


class BatchGradientPerSample(Scale):
    @staticmethod
    def backward(ctx, grad_output):
        x, row = ctx.saved_tensors
        return grad_output * row, SampleGradient.apply(grad_output, x)


class BatchedWrong(Sin):
    @staticmethod
    def backward(ctx, grad_output):
        gradient = Sin.backward(ctx, grad_output)
        return 2 * gradient if torch._C._functorch.is_legacy_batchedtensor(grad_output) else gradient


class WithJvp(Product):
    """Right, in forward mode too."""

    generate_vmap_rule = False

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def jvp(ctx, x_tangent, w_tangent):
        x, w = ctx.saved_tensors
        parts = [None if x_tangent is None else x_tangent * w, None if w_tangent is None else x * w_tangent]
        return sum(part for part in parts if part is not None)


class JvpWrong(WithJvp):
    @staticmethod
    def jvp(ctx, x_tangent, w_tangent):
        return WithJvp.jvp(ctx, x_tangent, None)


class JvpSwapped(WithJvp):
    @staticmethod
    def jvp(ctx, x_tangent, w_tangent):
        return WithJvp.jvp(ctx, w_tangent, x_tangent)


class JvpSign(WithJvp):
    @staticmethod
    def jvp(ctx, x_tangent, w_tangent):
        return -WithJvp.jvp(ctx, x_tangent, w_tangent)


class JvpNeedsBoth(WithJvp):
    """Right for tangents of both inputs, wrong for one alone."""

    @staticmethod
    def jvp(ctx, x_tangent, w_tangent):
        if x_tangent is None or w_tangent is None or not (x_tangent.any() and w_tangent.any()):
            return torch.zeros_like(ctx.saved_tensors[0])
        return WithJvp.jvp(ctx, x_tangent, w_tangent)


class CompiledWrong(Sin):
    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return grad_output * (2 if torch.compiler.is_compiling() else 1) * x.cos()


class CompileDropsTerm(SinCos):
    @staticmethod
    def backward(ctx, grad_sin, grad_cos):
        if torch.compiler.is_compiling():
            return grad_sin * ctx.saved_tensors[0].cos()
        return SinCos.backward(ctx, grad_sin, grad_cos)


class CompiledForward(Sin):
    @staticmethod
    def forward(x):
        return torch.sin(x) if not torch.compiler.is_compiling() else x - x**3 / 6


class AutocastDropsTerm(SinCos):
    @staticmethod
    def backward(ctx, grad_sin, grad_cos):
        if torch.is_autocast_enabled("cpu"):
            return grad_sin * ctx.saved_tensors[0].cos()
        return SinCos.backward(ctx, grad_sin, grad_cos)


class AutocastOverflows(Sin):
    """Goes through the dtype of autocast for a product that leaves its range."""

    @staticmethod
    def forward(x):
        if torch.is_autocast_enabled("cpu"):
            low = torch.get_autocast_dtype("cpu")
            return ((x.sin() * 1e5).to(low) / 1e5).to(x.dtype)
        return x.sin()


class Counter:
    """A stream of masks that every forward moves on, and that no seed resets."""

    calls = 0
    numpy = np.random.default_rng(7)


class Dropout(Function):
    """Right: torch's own mask, from torch's generator."""

    p = 0.4

    @staticmethod
    def forward(ctx, x):
        mask = torch.empty_like(x).bernoulli_(1 - Dropout.p).div_(1 - Dropout.p)
        ctx.save_for_backward(mask)
        return x * mask

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output * ctx.saved_tensors[0]


def dropout(x):
    return F.dropout(x, 0.4)


class CountedMask(Dropout):
    @staticmethod
    def forward(ctx, x):
        Counter.calls += 1
        own = torch.Generator().manual_seed(Counter.calls)
        mask = torch.empty_like(x).bernoulli_(0.6, generator=own).div_(0.6)
        ctx.save_for_backward(mask)
        return x * mask


class FixedMask(Dropout):
    @staticmethod
    def forward(ctx, x):
        own = torch.Generator().manual_seed(7)
        mask = torch.empty_like(x).bernoulli_(0.6, generator=own).div_(0.6)
        ctx.save_for_backward(mask)
        return x * mask


class MaskRedrawn(Dropout):
    @staticmethod
    def backward(ctx, grad_output):
        return grad_output * torch.empty_like(grad_output).bernoulli_(0.6).div_(0.6)


class WrongProbability(Dropout):
    @staticmethod
    def forward(ctx, x):
        mask = torch.empty_like(x).bernoulli_(0.5).div_(0.5)
        ctx.save_for_backward(mask)
        return x * mask


class KeepsTwoPercentMore(Dropout):
    @staticmethod
    def forward(ctx, x):
        mask = torch.empty_like(x).bernoulli_(0.62).div_(0.6)
        ctx.save_for_backward(mask)
        return x * mask


class Unscaled(Dropout):
    @staticmethod
    def forward(ctx, x):
        mask = torch.empty_like(x).bernoulli_(0.6)
        ctx.save_for_backward(mask)
        return x * mask


class NumpyMask(Dropout):
    @staticmethod
    def forward(ctx, x):
        mask = torch.empty_like(x).copy_(torch.from_numpy(Counter.numpy.random(x.shape) < 0.6)) / 0.6
        ctx.save_for_backward(mask)
        return x * mask


class RowsDropped(Dropout):
    """One draw a row: the same mean and variance of each element, and not independent."""

    @staticmethod
    def forward(ctx, x):
        mask = x.new_empty(x.shape[:1]).bernoulli_(0.6).div_(0.6)
        mask = mask.reshape(-1, *[1] * (x.dim() - 1)).expand_as(x)
        ctx.save_for_backward(mask)
        return x * mask


MUTANTS = [
    Mutant(
        WrongUnderVmap,
        (X,),
        torch.sin,
        "vmap",
        story="a batching rule for in_dim 0 alone",
    ),
    Mutant(
        MiddleInDim, (X,), torch.sin, "vmap", story="wrong for the one in_dim that is neither first nor last"
    ),
    Mutant(
        SecondUnbatched,
        (X, W),
        torch.mul,
        "vmap",
        story="an argument without a batch axis broadcast along the wrong one",
    ),
    Mutant(MixedInDims, (X, W), torch.mul, "vmap", story="right for equal in_dims alone"),
    Mutant(
        BatchGradientPerSample,
        (X, ROW),
        torch.mul,
        "func",
        story="per-sample gradients that are the batch's",
    ),
    Mutant(
        BatchedWrong,
        (X,),
        torch.sin,
        "batched",
        story="is_grads_batched takes a path of its own, as in pytorch/pytorch#46339",
    ),
    Mutant(JvpWrong, (X, W), torch.mul, "jvp", story="a term missing from a forward formula"),
    Mutant(JvpSwapped, (X, W), torch.mul, "jvp", story="tangents in another order than the arguments"),
    Mutant(JvpSign, (X, W), None, "jvp", story="a sign, with no reference to compare with"),
    Mutant(JvpNeedsBoth, (X, W), torch.mul, "jvp", story="a tangent that is None or zero drops the other"),
    Mutant(
        CompiledWrong,
        (X,),
        torch.sin,
        "compile",
        story="another backward under torch.compile: pytorch/pytorch#193279",
    ),
    Mutant(
        CompileDropsTerm,
        (X,),
        sin_cos,
        "compile",
        story="compiling drops a term: pytorch/pytorch#180642 is a gradient routed elsewhere",
    ),
    Mutant(CompiledForward, (X,), torch.sin, "compile", story="an approximation under the compiler alone"),
    Mutant(
        AutocastDropsTerm,
        (X,),
        sin_cos,
        "autocast",
        story="another backward under autocast",
    ),
    Mutant(AutocastOverflows, (X,), torch.sin, "autocast", story="float16 overflows inside, under autocast"),
    Mutant(
        CountedMask,
        (X,),
        dropout,
        "seeded",
        story="an offset that moves on whatever the seed: flagos-ai/FlagGems#6217",
    ),
    Mutant(
        CountedMask,
        (X,),
        dropout,
        "checkpoint",
        story="the same: the recomputed forward has another mask than the first",
    ),
    Mutant(
        FixedMask,
        (X,),
        dropout,
        "seeded",
        story="a seed of its own: facebookresearch/xformers#173 took an address for it",
    ),
    Mutant(
        MaskRedrawn,
        (X,),
        dropout,
        "repeat",
        story="another mask in backward than in forward: Dao-AILab/flash-attention#1251",
    ),
    Mutant(WrongProbability, (X,), dropout, "seeded", story="p where 1 - p belongs, or nearly"),
    Mutant(
        KeepsTwoPercentMore,
        (randn(8, 32),),
        dropout,
        "seeded",
        story="a threshold in integers, rounded too far",
    ),
    Mutant(Unscaled, (X,), dropout, "seeded", story="the 1/(1-p) forgotten"),
    Mutant(
        NumpyMask,
        (X,),
        dropout,
        "seeded",
        story="numpy's generator in place of torch's: harvard-edge/cs249r_book#1869",
    ),
    Mutant(RowsDropped, (X,), dropout, "seeded", story="one draw where each element has its own"),
]
