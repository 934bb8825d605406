"""What is kept for backward, for how long, and what a backward calls: right numbers at too high a price."""

from __future__ import annotations

import torch
from torch.autograd import Function

from .mutant import ROW, Mutant, Scale, Sin, W, X


class OnContext(Sin):
    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.x = inputs[0]

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output * ctx.x.cos()


class HiddenOnContext(Sin):
    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.slope = lambda: inputs[0].cos()

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output * ctx.slope()


class InAContainer(OnContext):
    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.cache = {"inputs": [inputs[0]]}

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output * ctx.cache["inputs"][0].cos()


class Wasteful(Sin):
    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0], inputs[0].cos(), inputs[0].sin())


class MaskInFloat(Function):
    """A mask of eight bytes an element, beside the input that it follows from."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.abs()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0], (inputs[0] > 0).to(output.dtype))

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output * ctx.saved_tensors[0].sign()


class OutputOnContext(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.y = x.exp()
        return ctx.y

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output * ctx.y


class FreedByBackwardAlone(OutputOnContext):
    @staticmethod
    def backward(ctx, grad_output):
        return grad_output * ctx.__dict__.pop("y")


class LastOnClass(Sin):
    last: torch.Tensor | None = None

    @staticmethod
    def setup_context(ctx, inputs, output):
        LastOnClass.last = inputs[0]
        ctx.save_for_backward(*inputs)


HISTORY: list[torch.Tensor] = []


class KeepsHistory(Sin):
    @staticmethod
    def backward(ctx, grad_output):
        gradient = Sin.backward(ctx, grad_output)
        if type(gradient) is torch.Tensor and len(HISTORY) < 1000:
            HISTORY.append(gradient)
        return gradient


class ArithmeticForFrozen(Scale):
    pass


class MatmulForFrozen(Function):
    @staticmethod
    def forward(x, w):
        return x @ w.T

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad_output):
        x, w = ctx.saved_tensors
        grad_x, grad_w = grad_output @ w, grad_output.T @ x
        return grad_x if ctx.needs_input_grad[0] else None, grad_w if ctx.needs_input_grad[1] else None


class ZerosForUnused(Function):
    @staticmethod
    def forward(x, y):
        return x * 2

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.shape = inputs[1].shape

    @staticmethod
    def backward(ctx, grad_output):
        return 2 * grad_output, grad_output.new_zeros(ctx.shape)


class Autograd(Sin):
    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(x.sin(), x, grad_output, create_graph=True)[0]


class Vjp(Sin):
    @staticmethod
    def backward(ctx, grad_output):
        return torch.func.vjp(torch.sin, ctx.saved_tensors[0])[1](grad_output)[0]


class BackwardKernel(Function):
    @staticmethod
    def forward(x):
        return x.sigmoid()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx, grad_output):
        return torch.ops.aten.sigmoid_backward(grad_output, ctx.saved_tensors[0])


def first_alone(x, y):
    return x * 2


MUTANTS = [
    Mutant(
        OnContext,
        (X,),
        torch.sin,
        "memory",
        "warn",
        story="a tensor on ctx in place of save_for_backward: asappresearch/sru#171",
    ),
    Mutant(HiddenOnContext, (X,), torch.sin, "memory", "warn", story="the same inside a closure"),
    Mutant(
        InAContainer,
        (X,),
        torch.sin,
        "memory",
        "warn",
        story="ctx.backward_cache, a tuple of tensors: dmlc/dgl#1060",
    ),
    Mutant(
        Wasteful, (X,), torch.sin, "memory", "warn", story="value and slope kept where the input is enough"
    ),
    Mutant(MaskInFloat, (X,), torch.abs, "memory", "warn", story="a mask kept in floating point"),
    Mutant(
        OutputOnContext,
        (X,),
        torch.exp,
        "leaks",
        "warn",
        story="an output on its own ctx, a cycle: pytorch/pytorch#25340, pytorch/pytorch#5569",
    ),
    Mutant(
        FreedByBackwardAlone,
        (X,),
        torch.exp,
        "leaks",
        "warn",
        story="a cycle that only a backward breaks: RobinBruegger/RevTorch#1",
    ),
    Mutant(LastOnClass, (X,), torch.sin, "leaks", "warn", story="the last batch held by the class"),
    Mutant(
        KeepsHistory,
        (X,),
        torch.sin,
        "leaks",
        "warn",
        story="gradients collected for a plot that nobody draws",
    ),
    Mutant(
        ArithmeticForFrozen,
        (X, ROW),
        torch.mul,
        "frozen",
        "warn",
        story="gradients of frozen norms: linkedin/Liger-Kernel#1067",
    ),
    Mutant(
        MatmulForFrozen,
        (X, W),
        torch.nn.functional.linear,
        "frozen",
        "warn",
        story="computed first, dropped afterwards",
    ),
    Mutant(
        ZerosForUnused,
        (X, W),
        first_alone,
        "unused",
        "warn",
        story="zeros where None belongs: pytorch/pytorch#58511",
    ),
    Mutant(
        Autograd, (X,), torch.sin, "purity", "warn", story="a backward that runs autograd on a second forward"
    ),
    Mutant(Vjp, (X,), torch.sin, "purity", "warn", story="the same through torch.func"),
    Mutant(
        BackwardKernel,
        (X,),
        torch.sigmoid,
        "purity",
        "warn",
        story="torch's own backward kernel under another name",
    ),
]
