"""The conventions between a backward and the engine: None, shapes, dtypes, subsets, linearity, repetition."""

from __future__ import annotations

import torch

from .mutant import ROW, Mutant, Product, Scale, Sin, SinCos, W, X, sin_cos


class WrongWhenFrozen(Product):
    @staticmethod
    def backward(ctx, grad_output):
        x, w = ctx.saved_tensors
        factor = 1 if ctx.needs_input_grad[1] else 0.5
        return factor * grad_output * w, grad_output * x


class NoneWhenFrozen(Product):
    @staticmethod
    def backward(ctx, grad_output):
        if not all(ctx.needs_input_grad):
            return None, None
        return Product.backward(ctx, grad_output)


class NeedsSwapped(Product):
    @staticmethod
    def backward(ctx, grad_output):
        x, w = ctx.saved_tensors
        return (
            grad_output * w if ctx.needs_input_grad[1] else None,
            grad_output * x if ctx.needs_input_grad[0] else None,
        )


class NotMaterialised(Sin):
    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(inputs[0])


class SecondNotMaterialised(SinCos):
    generate_vmap_rule = False

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx, first, second):
        (x,) = ctx.saved_tensors
        if first is None:
            return None if second is None else -second * x.sin()
        return first * x.cos() - second * x.sin()


class NoneDropsTheOther(SecondNotMaterialised):
    @staticmethod
    def backward(ctx, first, second):
        if first is None or second is None:
            return None
        return SinCos.backward(ctx, first, second)


class NotUnbroadcast(Scale):
    @staticmethod
    def backward(ctx, grad_output):
        x, row = ctx.saved_tensors
        return grad_output * row, grad_output * x


class KeepsAxis(Scale):
    @staticmethod
    def backward(ctx, grad_output):
        x, row = ctx.saved_tensors
        return grad_output * row, (grad_output * x).sum(0, keepdim=True)


class WrongDtype(Sin):
    @staticmethod
    def backward(ctx, grad_output):
        return Sin.backward(ctx, grad_output).double()


class HalfReturnsFloat(Sin):
    @staticmethod
    def backward(ctx, grad_output):
        gradient = Sin.backward(ctx, grad_output)
        return gradient.float() if gradient.itemsize == 2 else gradient


class TooFew(Product):
    @staticmethod
    def backward(ctx, grad_output):
        x, w = ctx.saved_tensors
        if not ctx.needs_input_grad[1]:
            return grad_output * w
        return grad_output * w, grad_output * x


class Clipped(Sin):
    @staticmethod
    def backward(ctx, grad_output):
        return Sin.backward(ctx, grad_output.clamp(-1, 1))


class ClippedFarOut(Sin):
    @staticmethod
    def backward(ctx, grad_output):
        return Sin.backward(ctx, grad_output.clamp(-100, 100))


class SmallFlushed(Sin):
    @staticmethod
    def backward(ctx, grad_output):
        return Sin.backward(ctx, torch.where(grad_output.abs() < 1e-6, 0.0, grad_output))


class SignOnly(Sin):
    @staticmethod
    def backward(ctx, grad_output):
        return Sin.backward(ctx, grad_output.sign())


class DividesByGradient(Sin):
    @staticmethod
    def backward(ctx, grad_output):
        return Sin.backward(ctx, grad_output * grad_output / grad_output)


class SecondDiffers(Sin):
    @staticmethod
    def backward(ctx, grad_output):
        again, ctx.again = getattr(ctx, "again", False), True
        return Sin.backward(ctx, grad_output) * (0.5 if again else 1.0)


class Accumulates(Sin):
    """Adds into the buffer that it returned the last time."""

    @staticmethod
    def backward(ctx, grad_output):
        gradient = Sin.backward(ctx, grad_output)
        ctx.total = gradient + getattr(ctx, "total", 0)
        return ctx.total


class RandomBackward(Sin):
    @staticmethod
    def backward(ctx, grad_output):
        return Sin.backward(ctx, grad_output) * (1 + 1e-9 * torch.rand((), dtype=torch.float64))


class Detached(Sin):
    @staticmethod
    def backward(ctx, grad_output):
        return grad_output * ctx.saved_tensors[0].detach().cos()


class DetachedGradient(Sin):
    @staticmethod
    def backward(ctx, grad_output):
        return grad_output.detach() * ctx.saved_tensors[0].cos()


class NoGraph(Sin):
    @staticmethod
    def backward(ctx, grad_output):
        with torch.no_grad():
            return Sin.backward(ctx, grad_output)


class IntermediateSaved(Sin):
    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0].detach().cos())

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output * ctx.saved_tensors[0]


class SecondFormula(Sin):
    """Another path where a graph is wanted, of another function."""

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            return grad_output * (1 - x.square() / 2 + x**4 / 24)
        return grad_output * x.cos()


class SecondByHalf(Sin):
    """The right gradient with a graph of half its slope."""

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return grad_output * ((x.cos() + x.detach().cos()) / 2)


MUTANTS = [
    Mutant(
        WrongWhenFrozen, (X, W), torch.mul, "subsets", story="a factor that depends on what else is trained"
    ),
    Mutant(NoneWhenFrozen, (X, W), torch.mul, "subsets", story="one frozen input freezes all"),
    Mutant(
        NeedsSwapped,
        (X, W),
        torch.mul,
        "subsets",
        story="needs_input_grad read in another order than forward's",
    ),
    Mutant(
        NotMaterialised,
        (X,),
        torch.sin,
        "gradcheck",
        story="set_materialize_grads(False), and no test for None: THUDM/slime#2158",
    ),
    Mutant(SecondNotMaterialised, (X,), sin_cos, "gradcheck", story="the same for the second of two outputs"),
    Mutant(
        SecondNotMaterialised, (X,), sin_cos, "undefined", story="the same, found by a loss on one output"
    ),
    Mutant(NoneDropsTheOther, (X,), sin_cos, "undefined", story="one missing gradient taken for none at all"),
    Mutant(
        NotUnbroadcast,
        (X, ROW),
        torch.mul,
        "raw",
        story="the engine sums what the backward forgot to: pytorch/pytorch#65244",
    ),
    Mutant(KeepsAxis, (X, ROW), torch.mul, "raw", story="[1, features] for the gradient of [features]"),
    Mutant(WrongDtype, (X,), torch.sin, "raw", story="a float64 gradient for whatever was given"),
    Mutant(HalfReturnsFloat, (X,), torch.sin, "raw", story="a float32 accumulator returned for a half input"),
    Mutant(
        TooFew, (X, W), torch.mul, "subsets", story="fewer gradients than inputs where the last are frozen"
    ),
    Mutant(Clipped, (X,), torch.sin, "undefined", story="gradients clipped inside a backward"),
    Mutant(
        ClippedFarOut,
        (X,),
        torch.sin,
        "undefined",
        story="the same at a bound that only a scaled loss reaches",
    ),
    Mutant(
        SmallFlushed,
        (X,),
        torch.sin,
        "undefined",
        story="small gradients taken for zeros, which a mean over many makes them",
    ),
    Mutant(SignOnly, (X,), torch.sin, "undefined", story="the sign of a gradient in its place"),
    Mutant(DividesByGradient, (X,), torch.sin, "undefined", story="0/0 where a loss masks a position"),
    Mutant(
        SecondDiffers,
        (X,),
        torch.sin,
        "repeat",
        story="the second backward reads what the first one spent: axolotl-ai-cloud/axolotl#3892",
    ),
    Mutant(
        Accumulates, (X,), torch.sin, "repeat", story="a workspace that is not cleared between two backwards"
    ),
    Mutant(RandomBackward, (X,), torch.sin, "repeat", story="sums by atomics, in another order each time"),
    Mutant(
        Detached, (X,), torch.sin, "gradgradcheck", story="a detach() that double backward cannot see through"
    ),
    Mutant(DetachedGradient, (X,), torch.sin, "gradgradcheck", story="the derivative by grad_output cut off"),
    Mutant(
        NoGraph,
        (X,),
        torch.sin,
        "gradgradcheck",
        story="no graph at all, and once_differentiable forgotten",
    ),
    Mutant(
        IntermediateSaved,
        (X,),
        torch.sin,
        "gradgradcheck",
        story="an intermediate of forward saved: pytorch/pytorch#58509, pytorch/pytorch#104040",
    ),
    Mutant(
        IntermediateSaved,
        (X,),
        torch.sin,
        "second",
        story="the same against the reference's second derivative",
    ),
    Mutant(SecondFormula, (X,), torch.sin, "gradgradcheck", story="another formula under create_graph"),
    Mutant(SecondByHalf, (X,), torch.sin, "second", story="a graph through one of two paths alone"),
]
