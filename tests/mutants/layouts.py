"""Memory that is not laid out as the author took for granted, and memory that others still use."""

from __future__ import annotations

import torch
from torch.autograd import Function

from .mutant import Exp, Mutant, Product, Sin, W, X, randn


def packed(tensor):
    """What a kernel reads that takes its argument for contiguous."""
    stride, strides = 1, []
    for size in reversed(tensor.shape):
        strides.insert(0, stride)
        stride *= size
    length = tensor.untyped_storage().nbytes() // tensor.itemsize - tensor.storage_offset()
    if length < tensor.numel():  # it would read past the end
        return tensor.reshape(-1)[:1].expand(tensor.numel()).reshape(tensor.shape)
    return torch.as_strided(tensor, tensor.shape, strides, tensor.storage_offset())


class Contiguous(Sin):
    @staticmethod
    def backward(ctx, grad_output):
        return packed(grad_output) * ctx.saved_tensors[0].cos()


class ContiguousInput(Sin):
    @staticmethod
    def forward(x):
        return packed(x).sin()


class ContiguousSecondInput(Product):
    @staticmethod
    def forward(x, w):
        return x * packed(w)


class ViewedInput(Sin):
    @staticmethod
    def forward(x):
        return x.view(-1).sin().view(x.shape)


class ViewedGradient(Sin):
    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return grad_output.view(-1).mul(x.reshape(-1).cos()).view(x.shape)


class OffsetIgnored(Sin):
    @staticmethod
    def forward(x):
        return torch.as_strided(x, x.shape, x.stride(), 0).sin()


class RowStrideIgnored(Sin):
    @staticmethod
    def backward(ctx, grad_output):
        if grad_output.dim() != 2 or not grad_output.numel() or grad_output.stride(-1) != 1:
            return Sin.backward(ctx, grad_output)
        return Contiguous.backward(ctx, grad_output)


class ExpandedIsConstant(Sin):
    @staticmethod
    def backward(ctx, grad_output):
        if 0 in grad_output.stride() and grad_output.numel():
            grad_output = grad_output.reshape(-1)[0].expand_as(grad_output)
        return Sin.backward(ctx, grad_output)


class ExpandedIsOnes(Sin):
    @staticmethod
    def backward(ctx, grad_output):
        if not any(grad_output.stride()):
            grad_output = torch.ones_like(grad_output)
        return Sin.backward(ctx, grad_output)


class ChannelsLast(Function):
    """The sum over channels, with a kernel for each memory format."""

    @staticmethod
    def forward(x):
        return x.sum(1)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        if not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
            grad_output = grad_output.mT if grad_output.shape[1] == grad_output.shape[2] else grad_output
        return grad_output[:, None].expand_as(x)


class GradOutputOverwritten(Sin):
    @staticmethod
    def backward(ctx, grad_output):
        return grad_output.mul_(ctx.saved_tensors[0].cos())


class SavedOverwritten(Sin):
    @staticmethod
    def backward(ctx, grad_output):
        return ctx.saved_tensors[0].cos_() * grad_output


class SavedOverwrittenAndRestored(Sin):
    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        gradient = grad_output * x.neg_().cos()
        x.neg_()
        return gradient


class OutputOverwritten(Exp):
    @staticmethod
    def backward(ctx, grad_output):
        return ctx.saved_tensors[0].data.mul_(grad_output).clone()


class InputOverwritten(Sin):
    @staticmethod
    def forward(x):
        y = x.sin()
        x.data.clamp_(-1, 1)
        return y


class GradientIntoInput(Sin):
    """The forward leaves the derivative where its input was, as a fused loss does."""

    @staticmethod
    def forward(x):
        y = x.sin()
        x.data.copy_(x.cos())
        return y

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output * ctx.saved_tensors[0]


class ScratchInInput(Product):
    """Borrows the memory of one argument while it reads the other."""

    @staticmethod
    def forward(x, w):
        scratch = w.data.mul_(2)
        y = x * scratch / 2
        w.data.div_(2)
        return y


class SameTensorOnce(Product):
    """Takes one tensor for both arguments as a square, and returns its gradient twice."""

    @staticmethod
    def backward(ctx, grad_output):
        x, w = ctx.saved_tensors
        if x.data_ptr() == w.data_ptr():
            return 2 * grad_output * x, 2 * grad_output * x
        return Product.backward(ctx, grad_output)


class SameTensorHalf(Product):
    @staticmethod
    def backward(ctx, grad_output):
        x, w = ctx.saved_tensors
        if x.data_ptr() == w.data_ptr():
            return grad_output * x, None
        return Product.backward(ctx, grad_output)


class ReturnsView(Function):
    @staticmethod
    def forward(x):
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output


class SavesOutput(Function):
    """The derivative from the output, where the twin keeps its input."""

    @staticmethod
    def forward(x):
        return x.sigmoid()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx, grad_output):
        (y,) = ctx.saved_tensors
        return grad_output * y * (1 - y)


class SavesOutputUnseen(SavesOutput):
    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output.data)


def sigmoid(x):
    """A twin that may be written to: torch's own keeps its output."""
    return x.sigmoid() + 0


def channel_sum(x):
    return x.sum(1)


IMAGES = randn(2, 3, 4, 4)

MUTANTS = [
    Mutant(
        Contiguous,
        (X,),
        torch.sin,
        "layouts",
        story="grad_output read as if it were packed: Dao-AILab/flash-attention#355, pytorch/pytorch#195210",
    ),
    Mutant(
        ContiguousInput,
        (X,),
        torch.sin,
        "layouts",
        story="an input that is not contiguous: pytorch/pytorch#69997",
    ),
    Mutant(ContiguousInput, (X,), None, "layouts", story="the same, with no reference to compare with"),
    Mutant(
        ContiguousSecondInput,
        (X, W),
        torch.mul,
        "layouts",
        story="only the first argument's strides are passed to the kernel",
    ),
    Mutant(ViewedInput, (X,), torch.sin, "layouts", story="view() on an input that is not contiguous"),
    Mutant(ViewedGradient, (X,), torch.sin, "layouts", story="view() on grad_output: NVIDIA/apex#1601"),
    Mutant(OffsetIgnored, (X,), torch.sin, "layouts", story="the storage's start taken for the tensor's"),
    Mutant(
        RowStrideIgnored,
        (X,),
        torch.sin,
        "layouts",
        story="a narrow view, as cat's backward hands out, read with rows end to end: pytorch/pytorch#195210",
    ),
    Mutant(
        ExpandedIsConstant,
        (X,),
        torch.sin,
        "layouts",
        story="one stride of 0 taken for all: pytorch/pytorch#64529 is how such gradients come",
    ),
    Mutant(
        ExpandedIsOnes, (X,), torch.sin, "layouts", story="an expanded gradient taken for the ones of sum()"
    ),
    Mutant(
        ChannelsLast,
        (IMAGES,),
        channel_sum,
        "layouts",
        story="another kernel for channels-last, wrong in its backward: pytorch/pytorch#188344",
    ),
    Mutant(
        GradOutputOverwritten,
        (X,),
        torch.sin,
        "unmutated",
        story="dX written over dY: unslothai/unsloth#4550",
    ),
    Mutant(
        SavedOverwritten,
        (X,),
        torch.sin,
        "unmutated",
        story="logits overwritten by their gradient: unslothai/unsloth#5002",
    ),
    Mutant(
        SavedOverwrittenAndRestored,
        (X,),
        torch.sin,
        "unmutated",
        story="written to and put back, where another thread may read",
    ),
    Mutant(
        OutputOverwritten,
        (X,),
        torch.exp,
        "unmutated",
        story="an output, the next layer's input, overwritten behind .data",
    ),
    Mutant(
        InputOverwritten,
        (X,),
        torch.sin,
        "unmutated",
        story="an input clamped in place, unseen by the version counter",
    ),
    Mutant(
        GradientIntoInput,
        (X,),
        torch.sin,
        "unmutated",
        story="the gradient left in the input by the forward: linkedin/Liger-Kernel#272",
    ),
    Mutant(
        ScratchInInput, (X, W), torch.mul, "aliased", story="an argument used as scratch space, and put back"
    ),
    Mutant(SameTensorOnce, (X, W), torch.mul, "aliased", story="a shortcut for f(x, x) that counts it twice"),
    Mutant(
        SameTensorHalf,
        (X, W),
        torch.mul,
        "aliased",
        story="f(x, x) gets half its gradient, as compiled in pytorch/pytorch#183604",
    ),
    Mutant(
        ReturnsView,
        (X,),
        lambda x: x.clone(),
        "inplace",
        "warn",
        story="an output that is a view of the input: pytorch/pytorch#73604",
    ),
    Mutant(
        SavesOutput,
        (X,),
        sigmoid,
        "inplace",
        "warn",
        story="keeps its output where the twin does not: `out += identity` raises",
    ),
    Mutant(
        SavesOutputUnseen,
        (X,),
        sigmoid,
        "inplace",
        story="keeps the memory of its output behind .data: `out += identity` trains wrongly",
    ),
]
