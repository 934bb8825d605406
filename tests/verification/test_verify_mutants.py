"""Broken Functions, each caught by the check meant for it; unusual ones that are right, not refused."""

import numpy as np
import pytest
import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

import bpkit


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Sin(Function):
    """Right, and what most mutants change one line of."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.sin()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output * ctx.saved_tensors[0].cos()


class Product(Function):
    """Right: `x * w`, of two inputs."""

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
            grad_output * w if ctx.needs_input_grad[0] else None,
            grad_output * x if ctx.needs_input_grad[1] else None,
        )


class Scaled(Sin):
    @staticmethod
    def backward(ctx, grad_output):
        return 1.001 * Sin.backward(ctx, grad_output)


class Contiguous(Sin):
    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        memory = torch.as_strided(grad_output, x.shape, (x.shape[1], 1), grad_output.storage_offset())
        return memory * x.cos()


class ContiguousInput(Sin):
    @staticmethod
    def forward(x):
        return torch.as_strided(x, x.shape, (x.shape[1], 1), x.storage_offset()).sin()


class ViewedInput(Sin):
    @staticmethod
    def forward(x):
        return x.view(-1).sin().view(x.shape)


class OnContext(Sin):
    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.x = inputs[0]

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output * ctx.x.cos()


class HiddenOnContext(OnContext):
    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.slope = lambda: inputs[0].cos()

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output * ctx.slope()


class Wasteful(Sin):
    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0], inputs[0].cos(), inputs[0].sin())


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


class OutputOverwritten(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.exp()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx, grad_output):
        return ctx.saved_tensors[0].data.mul_(grad_output).clone()


class InputOverwritten(Sin):
    @staticmethod
    def forward(x):
        y = x.sin()
        x.data.clamp_(-1, 1)
        return y


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


class NotMaterialised(Sin):
    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(inputs[0])


class SecondNotMaterialised(Function):
    @staticmethod
    def forward(x):
        return x.sin(), x.cos()

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


class NotUnbroadcast(Product):
    @staticmethod
    def backward(ctx, grad_output):
        x, w = ctx.saved_tensors
        return grad_output * w, grad_output * x  # w is a row


class SummedOverWrongAxis(Product):
    @staticmethod
    def backward(ctx, grad_output):
        x, w = ctx.saved_tensors
        return grad_output * w, (grad_output * x).mean(0)


class WrongDtype(Sin):
    @staticmethod
    def backward(ctx, grad_output):
        return Sin.backward(ctx, grad_output).double()


class Autograd(Sin):
    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(x.sin(), x, grad_output, create_graph=True)[0]


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


class SecondDiffers(Sin):
    @staticmethod
    def backward(ctx, grad_output):
        again, ctx.again = getattr(ctx, "again", False), True
        return Sin.backward(ctx, grad_output) * (0.5 if again else 1.0)


class RandomBackward(Sin):
    @staticmethod
    def backward(ctx, grad_output):
        return Sin.backward(ctx, grad_output) * (1 + 1e-9 * torch.rand((), dtype=torch.float64))


class Detached(Sin):
    @staticmethod
    def backward(ctx, grad_output):
        return grad_output * ctx.saved_tensors[0].detach().cos()


class IntermediateSaved(Sin):
    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0].detach().cos())

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output * ctx.saved_tensors[0]


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


class WrongValue(Sin):
    @staticmethod
    def forward(x):
        return x.sin() + 1e-10


class LowSum(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.sum(1)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output[:, None].expand_as(ctx.saved_tensors[0])


class AccumulatesLow(LowSum):
    @staticmethod
    def forward(x):
        total = x.new_zeros(x.shape[0])
        for column in x.unbind(1):
            total = total + column
        return total


class WrongUnderVmap(Sin):
    generate_vmap_rule = False

    @staticmethod
    def vmap(info, in_dims, x):
        return Sin.apply(x), 0  # right for in_dim 0 alone


class BatchedWrong(Sin):
    @staticmethod
    def backward(ctx, grad_output):
        gradient = Sin.backward(ctx, grad_output)
        return 2 * gradient if torch._C._functorch.is_legacy_batchedtensor(grad_output) else gradient


class CompiledWrong(Sin):
    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return grad_output * (2 if torch.compiler.is_compiling() else 1) * x.cos()


X, W, ROW = randn(4, 6), randn(4, 6, seed=1), randn(6, seed=2)
MANY = randn(3, 400, seed=3).abs()


def both(x):
    return x.sin(), x.cos()


def total(x):
    return x.sum(1)


BROKEN = [
    (Scaled, (X,), torch.sin, "parity", "fail"),
    (Scaled, (X,), None, "gradcheck", "fail"),
    (WrongValue, (X,), torch.sin, "parity", "fail"),
    (WrongTail, (X,), torch.sin, "parity", "fail"),
    (WrongTail, (X,), None, "gradcheck", "fail"),
    (WrongLowerTail, (X,), torch.sin, "parity", "fail"),
    (SummedOverWrongAxis, (X, ROW), torch.mul, "parity", "fail"),
    (Contiguous, (X,), torch.sin, "layouts", "fail"),
    (ContiguousInput, (X,), torch.sin, "layouts", "fail"),
    (ContiguousInput, (X,), None, "layouts", "fail"),
    (ViewedInput, (X,), torch.sin, "layouts", "fail"),
    (OnContext, (X,), torch.sin, "memory", "warn"),
    (HiddenOnContext, (X,), torch.sin, "memory", "warn"),
    (Wasteful, (X,), torch.sin, "memory", "warn"),
    (GradOutputOverwritten, (X,), torch.sin, "unmutated", "fail"),
    (SavedOverwritten, (X,), torch.sin, "unmutated", "fail"),
    (SavedOverwrittenAndRestored, (X,), torch.sin, "unmutated", "fail"),
    (OutputOverwritten, (X,), torch.exp, "unmutated", "fail"),
    (InputOverwritten, (X,), torch.sin, "unmutated", "fail"),
    (WrongWhenFrozen, (X, W), torch.mul, "subsets", "fail"),
    (NoneWhenFrozen, (X, W), torch.mul, "subsets", "fail"),
    (NotMaterialised, (X,), torch.sin, "gradcheck", "fail"),
    (SecondNotMaterialised, (X,), both, "gradcheck", "fail"),
    (NotUnbroadcast, (X, ROW), torch.mul, "raw", "fail"),
    (WrongDtype, (X,), torch.sin, "raw", "fail"),
    (Autograd, (X,), torch.sin, "purity", "warn"),
    (BackwardKernel, (X,), torch.sigmoid, "purity", "warn"),
    (SecondDiffers, (X,), torch.sin, "repeat", "fail"),
    (RandomBackward, (X,), torch.sin, "repeat", "fail"),
    (Detached, (X,), torch.sin, "gradgradcheck", "fail"),
    (IntermediateSaved, (X,), torch.sin, "gradgradcheck", "fail"),
    (AccumulatesLow, (MANY,), total, "precision", "fail"),
    (WrongUnderVmap, (X,), torch.sin, "vmap", "fail"),
    (BatchedWrong, (X,), torch.sin, "batched", "fail"),
    (CompiledWrong, (X,), torch.sin, "compile", "fail"),
]


@pytest.mark.parametrize(
    ("function", "inputs", "reference", "check", "status"),
    BROKEN,
    ids=[f"{case[0].__name__}-{case[3]}" for case in BROKEN],
)
def test_a_broken_function_is_caught_by_the_check_meant_for_it(function, inputs, reference, check, status):
    report = bpkit.verify(function, *inputs, reference=reference, only=check)
    (result,) = report.results
    assert (result.name, result.status) == (check, status)
    assert result.detail
    assert result.remedy
    assert report.ok == (status != "fail")


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


class SinCos(Function):
    """Several outputs."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.sin(), x.cos()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx, grad_sin, grad_cos):
        (x,) = ctx.saved_tensors
        return grad_sin * x.cos() - grad_cos * x.sin()


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


class PartsUnneeded(Product):
    """Unpacks its saved tensors one at a time."""

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output * ctx.saved_tensors[1], grad_output * ctx.saved_tensors[0]


class Unused(Function):
    """One input has no influence."""

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


def composed(pair, *, power=2):
    """Not a Function at all: nested inputs, a keyword."""
    return {"a": Sin.apply(pair[0]) ** power, "b": [pair[1] * 2]}


def masked(x, threshold):
    mask = (x.detach() > threshold).to(x.dtype)
    return x * mask, mask


# Without AVX-512 oneDNN has no bfloat16 LSTM, and torch's own raises under autocast.
NO_LSTM = set() if torch.ops.mkldnn._is_mkldnn_bf16_supported() else {"autocast"}

UNUSUAL = [
    (Sin, (X,), torch.sin, set()),
    (Product, (X, W), torch.mul, set()),
    (Product, (X.T, W.T[:, :4]), torch.mul, set()),
    (Once, (X,), torch.sin, {"gradgradcheck", "compile"}),
    (Numpy, (X,), torch.sin, {"gradgradcheck", "batched", "vmap", "func"}),
    (
        Gather,
        (X, torch.tensor([0, 2, 2]), 3.0),
        lambda table, index, scale: scale * F.embedding(index, table),
        set(),
    ),
    (SinCos, (X,), both, set()),
    (Largest, (X,), lambda x: tuple(x.max(1)), {"vmap", "func"}),
    (Mask, (X, 0.1), masked, {"vmap"}),
    (InPlace, (X,), lambda x: x * 2, {"vmap", "func"}),
    (InPlace, (X,), None, {"parity", "precision", "vmap", "func"}),
    (PartsUnneeded, (X, W), torch.mul, set()),
    (Unused, (X, W), lambda x, y: 2 * x, set()),
    (OwnVmap, (X,), torch.sin, set()),
    (DataDependent, (X,), torch.sin, {"batched", "vmap", "compile"}),
    (composed, ((X, W),), None, {"parity", "precision"}),
    (torch.nn.GELU(), (X,), torch.nn.GELU(), {"raw"}),
    (torch.nn.LSTM(3, 2), (randn(2, 2, 3),), torch.nn.LSTM(3, 2), {"raw", "vmap", "compile"} | NO_LSTM),
    (Sin, (torch.tensor(0.3, dtype=torch.float64),), torch.sin, set()),
    (Sin, (torch.empty(0, 3, dtype=torch.float64),), torch.sin, set()),
]


@pytest.mark.parametrize(
    ("function", "inputs", "reference", "skipped"),
    UNUSUAL,
    ids=[f"{i}-{getattr(case[0], '__name__', type(case[0]).__name__)}" for i, case in enumerate(UNUSUAL)],
)
def test_a_right_function_is_not_refused(function, inputs, reference, skipped):
    report = bpkit.verify(function, *inputs, reference=reference)
    assert report.ok, str(report)
    assert {result.name for result in report.results if result.status == "skip"} == skipped, str(report)
