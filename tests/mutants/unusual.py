"""Right, and unlike the example in the manual: what no checker may refuse."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .modes import Dropout, WithJvp, dropout
from .modules import Affine
from .mutant import (
    ROW,
    Product,
    RowSum,
    Scale,
    Sin,
    SinCos,
    Softmax,
    Unusual,
    W,
    X,
    randn,
    row_sum,
    sin_cos,
    softmax,
)
from .operators import sin


class Once(Sin):
    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        return Sin.backward(ctx, grad_output)


class Numpy(Function):
    """In the older style, through numpy, differentiable once."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.from_numpy(np.sin(x.detach().cpu().numpy()))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return torch.from_numpy(grad_output.cpu().numpy() * np.cos(x.detach().cpu().numpy()))


class ContextInForward(Function):
    @staticmethod
    def forward(ctx, x, scale):
        ctx.save_for_backward(x)
        ctx.scale = scale
        return scale * x.sin()

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output * ctx.scale * ctx.saved_tensors[0].cos(), None


class Gather(Function):
    """An integer input, and one that is no tensor."""

    generate_vmap_rule = True

    @staticmethod
    def forward(table, index, scale):
        return scale * table[index]

    @staticmethod
    def setup_context(ctx, inputs, output):
        table, index, ctx.scale = inputs
        ctx.rows = table.shape[0]
        ctx.save_for_backward(index)

    @staticmethod
    def backward(ctx, grad_output):
        (index,) = ctx.saved_tensors
        zeros = grad_output.new_zeros(ctx.rows, grad_output.shape[-1])
        return zeros.index_add(0, index, ctx.scale * grad_output), None, None


class Options(Function):
    """Arguments of every other kind: a string, a dict, a flag, None."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, mode, options, bias):
        return x.sin() * options["scale"] if mode == "sin" else x

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, ctx.mode, ctx.options, _ = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output * ctx.saved_tensors[0].cos() * ctx.options["scale"], None, None, None


class Largest(Function):
    """An output that is not differentiable."""

    @staticmethod
    def forward(ctx, x):
        values, index = x.max(1)
        ctx.save_for_backward(index)
        ctx.mark_non_differentiable(index)
        ctx.columns = x.shape[1]
        return values, index

    @staticmethod
    def backward(ctx, grad_values, grad_index):
        (index,) = ctx.saved_tensors
        zeros = grad_values.new_zeros(len(index), ctx.columns)
        return zeros.scatter(1, index[:, None], grad_values[:, None])


class Mask(Function):
    """A non-differentiable output in floating point, and an input without a gradient."""

    @staticmethod
    def forward(x, threshold):
        mask = (x > threshold).to(x.dtype)
        return x * mask, mask

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx, grad_output, _):
        return grad_output * ctx.saved_tensors[0], None


class InPlace(Function):
    """Writes to its input, and says so."""

    @staticmethod
    def forward(ctx, x):
        ctx.mark_dirty(x)
        x.mul_(2)
        return x

    @staticmethod
    def backward(ctx, grad_output):
        return 2 * grad_output


class OneByOne(Product):
    """Unpacks its saved tensors one at a time."""

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output * ctx.saved_tensors[1], grad_output * ctx.saved_tensors[0]


class Unused(Function):
    """One input has no influence, and gets None."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, y):
        return 2 * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad_output):
        return 2 * grad_output, None


class OwnVmap(Sin):
    generate_vmap_rule = False

    @staticmethod
    def vmap(info, in_dims, x):
        return OwnVmap.apply(x), in_dims[0]


class DataDependent(Sin):
    @staticmethod
    def backward(ctx, grad_output):
        if not grad_output.any():
            return torch.zeros_like(grad_output)
        return Sin.backward(ctx, grad_output)


class Recomputes(Function):
    """Keeps its inputs alone, and runs most of the forward again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, w):
        return (x @ w.T).sigmoid().sin()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad_output):
        x, w = ctx.saved_tensors
        y = (x @ w.T).sigmoid()
        delta = grad_output * y.cos() * y * (1 - y)
        return delta @ w, delta.mT @ x


class MaterialisesNothing(SinCos):
    """Tests each gradient for None, and returns None where all are."""

    generate_vmap_rule = False

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx, grad_sin, grad_cos):
        if grad_sin is None and grad_cos is None:
            return None
        (x,) = ctx.saved_tensors
        first = 0 if grad_sin is None else grad_sin * x.cos()
        return first if grad_cos is None else first - grad_cos * x.sin()


class ThroughFunctions(Function):
    """Its backward is a Function itself."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, w):
        return x * w

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad_output):
        x, w = ctx.saved_tensors
        return (
            ThroughFunctions.apply(grad_output, w) if ctx.needs_input_grad[0] else None,
            ThroughFunctions.apply(grad_output, x) if ctx.needs_input_grad[1] else None,
        )


class OwnMask(Dropout):
    """Draws from torch's generator, and other numbers than torch's own dropout."""

    @staticmethod
    def forward(ctx, x):
        mask = (torch.rand_like(x) > Dropout.p).to(x.dtype) / (1 - Dropout.p)
        ctx.save_for_backward(mask)
        return x * mask


class Noise(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x + 0.1 * torch.empty_like(x).normal_()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output


def taking(base, *dtypes):
    """`base` as a kernel that takes these dtypes and no other."""

    class Kernel(base):
        @staticmethod
        def forward(x):
            if x.dtype not in dtypes:
                raise TypeError(f"the kernel takes {dtypes}, not {x.dtype}")
            return base.forward(x)

    Kernel.__name__ = Kernel.__qualname__ = f"{base.__name__}Of" + "And".join(
        str(each).removeprefix("torch.").capitalize() for each in dtypes
    )
    return Kernel


Float32Only = taking(Sin, torch.float32)
Float32Softmax = taking(Softmax, torch.float32)
HalfOnly = taking(Sin, torch.float16, torch.bfloat16)
HalfSoftmax = taking(Softmax, torch.float16, torch.bfloat16)


class ColumnsOfTwo(Softmax):
    """A kernel for certain widths, that says so for the others; an empty batch it takes."""

    @staticmethod
    def forward(x):
        if x.shape[-1] % 2:
            raise ValueError("the kernel takes an even number of columns")
        return Softmax.forward(x)


class TwoAxesOnly(RowSum):
    @staticmethod
    def forward(x):
        if x.dim() != 2:
            raise ValueError("the kernel takes a matrix")
        return RowSum.forward(x)


class MakesContiguous(Function):
    """A kernel that reads memory, behind `contiguous()`."""

    @staticmethod
    def forward(ctx, x):
        x = x.contiguous()
        ctx.save_for_backward(x)
        return torch.as_strided(x, (x.numel(),), (1,), x.storage_offset()).sin().view(x.shape)

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output.contiguous() * ctx.saved_tensors[0].cos()


class OneValue(RowSum):
    """Reduces everything to a tensor without axes."""

    @staticmethod
    def forward(x):
        return x.sum()

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output.expand_as(ctx.saved_tensors[0])


class Complicated(nn.Module):
    """Buffers that a call replaces or changes in place, a parameter that is used twice, a Function inside."""

    def __init__(self) -> None:
        super().__init__()
        self.affine = Affine()
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.seen = self.seen + 1
        self.calls.add_(1)
        return Sin.apply(self.affine(self.affine(x)))


def composed(pair, *, power=2):
    """Not a Function at all: nested inputs, a keyword."""
    return {"a": Sin.apply(pair[0]) ** power, "b": [pair[1] * 2]}


def straight(x, w):
    """Torch's operations, differentiated by autograd."""
    return (x * w).tanh().sum(-1)


def masked(x, threshold):
    mask = (x.detach() > threshold).to(x.dtype)
    return x * mask, mask


def embedding(table, index, scale):
    return scale * F.embedding(index, table)


def sin_scaled(x, mode, options, bias):
    return x.sin() * options["scale"]


class ByHand(Function):
    """Dropout whose mask is torch's in float64, and another than torch's in half precision."""

    @staticmethod
    def forward(ctx, x):
        mask = (torch.rand_like(x) < 0.6).to(x.dtype) / 0.6
        ctx.save_for_backward(mask)
        return x * mask

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output * ctx.saved_tensors[0]


class Distances(Function):
    """All distances between rows; torch's own has no second derivative, and this one has."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, y):
        return (x.unsqueeze(-2) - y.unsqueeze(-3)).square().sum(-1).sqrt()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad_output):
        x, y = ctx.saved_tensors
        apart = x.unsqueeze(-2) - y.unsqueeze(-3)
        square = apart.square().sum(-1)
        slope = torch.where(square == 0, 0, grad_output * square.clamp(min=1e-300).rsqrt())
        each = slope.unsqueeze(-1) * apart
        return (
            each.sum(-2) if ctx.needs_input_grad[0] else None,
            -each.sum(-3) if ctx.needs_input_grad[1] else None,
        )


class LogDeterminant(Function):
    """Of the symmetric part of a matrix, which has to be positive definite."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a):
        lower = torch.linalg.cholesky((a + a.mT) / 2)
        return 2 * lower.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx, grad_output):
        (a,) = ctx.saved_tensors
        return grad_output[..., None, None] * torch.linalg.inv((a + a.mT) / 2)


class Likelihood(Function):
    """Of probabilities, which torch refuses to take outside of [0, 1]."""

    @staticmethod
    def forward(ctx, p, t):
        ctx.save_for_backward(p, t)
        return F.binary_cross_entropy(p, t, reduction="none")

    @staticmethod
    def backward(ctx, grad_output):
        p, t = ctx.saved_tensors
        return grad_output * (p - t) / (p * (1 - p)).clamp(min=1e-12), None


def log_determinant(a):
    lower = torch.linalg.cholesky((a + a.mT) / 2)
    return 2 * lower.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def likelihood(p, t):
    return F.binary_cross_entropy(p, t, reduction="none")


def scaled_sin(x, scale):
    return scale * x.sin()


def sigmoid_sin(x, w):
    return F.linear(x, w).sigmoid().sin()


def noisy(x):
    return x + 0.1 * torch.randn(2, *x.shape, dtype=x.dtype)[1]


def doubled(x, *_):
    return 2 * x


# Without AVX-512 oneDNN has no bfloat16 LSTM, and torch's own raises under autocast.
NO_LSTM = () if torch.ops.mkldnn._is_mkldnn_bf16_supported() else ("autocast",)


def unusual(function, inputs, reference, *skipped):
    return Unusual(function, inputs, reference, frozenset(skipped))


WITHOUT_REFERENCE = ("parity", "extremes", "second", "unused", "precision", "inplace")
WITHOUT_FLOAT64 = ("gradcheck", "gradgradcheck", "second")
SCALAR, EMPTY = randn(), randn(0, 3)
POSITIVE = randn(3, 3) @ randn(3, 3).mT + torch.eye(3, dtype=torch.float64)
CHANCES, OUTCOMES = W.sigmoid(), (X > 0).double()

UNUSUAL = [
    unusual(Sin, (X,), torch.sin),
    unusual(Product, (X, W), torch.mul),
    unusual(Product, (X.T, W.T[:, :4]), torch.mul),
    unusual(Scale, (X, ROW), torch.mul),
    unusual(Softmax, (X,), softmax, "inplace"),
    unusual(Once, (X,), torch.sin, "compile", "gradgradcheck", "second"),
    unusual(Numpy, (X,), torch.sin, "batched", "func", "gradgradcheck", "second", "vmap"),
    unusual(ContextInForward, (X, 2.0), scaled_sin, "func", "vmap"),
    unusual(Gather, (X, torch.tensor([0, 2, 2]), 3.0), embedding),
    unusual(Options, (X, "sin", {"scale": 2.0}, None), sin_scaled),
    unusual(SinCos, (X,), sin_cos),
    unusual(Largest, (X,), lambda x: tuple(x.max(1)), "func", "vmap"),
    unusual(Mask, (X, 0.1), masked, "inplace", "vmap"),
    unusual(InPlace, (X,), doubled, "func", "vmap"),
    unusual(InPlace, (X,), None, *WITHOUT_REFERENCE, "func", "vmap"),
    unusual(OneByOne, (X, W), torch.mul),
    unusual(Unused, (X, W), doubled),
    unusual(OwnVmap, (X,), torch.sin),
    unusual(WithJvp, (X, W), torch.mul, "compile", "vmap"),
    unusual(DataDependent, (X,), torch.sin, "batched", "compile", "vmap"),
    unusual(Recomputes, (X, W), sigmoid_sin),
    unusual(MaterialisesNothing, (X,), sin_cos, "vmap"),
    unusual(ThroughFunctions, (X, W), torch.mul),
    unusual(Float32Only, (X,), torch.sin, *WITHOUT_FLOAT64),
    unusual(Float32Softmax, (X,), softmax, *WITHOUT_FLOAT64, "inplace"),
    unusual(HalfOnly, (X,), torch.sin, *WITHOUT_FLOAT64),
    unusual(HalfSoftmax, (X,), softmax, *WITHOUT_FLOAT64, "inplace"),
    unusual(ColumnsOfTwo, (X,), softmax, "inplace"),
    unusual(TwoAxesOnly, (X,), row_sum),
    unusual(MakesContiguous, (X,), torch.sin, "compile", "func", "vmap"),
    unusual(OneValue, (X,), torch.sum),
    unusual(Dropout, (X,), dropout, "compile", "func", "vmap"),
    unusual(OwnMask, (X,), dropout, *WITHOUT_REFERENCE, "sizes", "compile", "func", "vmap"),
    unusual(Noise, (X,), noisy, *WITHOUT_REFERENCE, "sizes"),
    unusual(ByHand, (X,), dropout, *WITHOUT_REFERENCE, "sizes", "func", "vmap"),
    unusual(Distances, (X, randn(3, 6, seed=5)), torch.cdist, "second"),
    unusual(LogDeterminant, (POSITIVE,), log_determinant, "vmap"),
    unusual(Likelihood, (CHANCES.requires_grad_(), OUTCOMES), likelihood, "func", "vmap"),
    unusual(sin, (X,), torch.sin, "func"),
    unusual(composed, ((X, W),), None, *WITHOUT_REFERENCE),
    unusual(straight, (X, W), straight, "raw"),
    unusual(Affine(), (X,), Affine(), "raw"),
    unusual(Complicated(), (X,), Complicated()),
    unusual(nn.GELU(), (X,), nn.GELU(), "raw"),
    unusual(nn.LSTM(3, 2), (randn(2, 2, 3),), nn.LSTM(3, 2), "raw", "vmap", "compile", *NO_LSTM),
    unusual(Sin, (SCALAR,), torch.sin),
    unusual(Sin, (EMPTY,), torch.sin),
]
