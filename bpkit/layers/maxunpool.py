"""MaxUnpool1d, 2d, 3d: values put back where a maximum came from, zeros elsewhere.

    y[q] = Σ_p [m(p) = q] x[p]        m: the positions that a max pool returned
    ∂L/∂x[p] = δ[m(p)]                p: input, q: output position

Where windows overlap, two p may name one q; they then hold the same maximum, and y[q] is that value once (one
of them is written). Each gets δ[q], as in torch.

Saved: m, which is the caller's.
Source: Zeiler, Taylor & Fergus, "Adaptive deconvolutional networks for mid and high level feature learning",
2011.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from bpkit.core.function import Function
from bpkit.core.module import Handwritten
from bpkit.core.spec import LayerSpec, Sample, nbytes, randn
from bpkit.layers.windows import named, unviewed


class MaxUnpoolFunction(Function):
    """`(x [*, *p], m [*, *p], axes, kernel, stride, padding, size) -> y [*, *q]`."""

    autocast = {"cpu": "fp32"}

    @staticmethod
    def forward(
        input: Tensor, indices: Tensor, axes: int, kernel: Any, stride: Any, padding: Any, size: Any
    ) -> Tensor:
        unpool = (F.max_unpool1d, F.max_unpool2d, F.max_unpool3d)[axes - 1]
        output = unpool(input, indices, kernel, stride, padding, size)
        return unviewed(output) if axes == 1 else output

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.axes = inputs[2]
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (indices,) = ctx.saved_tensors
        planes = indices.shape[: indices.dim() - ctx.axes]
        flat = grad_output.reshape(*planes, grad_output.shape[-ctx.axes :].numel())
        at = indices.reshape(*planes, indices.shape[-ctx.axes :].numel())
        return flat.gather(-1, at).reshape(indices.shape), *(None,) * 6


def _max_unpool(axes: int) -> Callable[..., Tensor]:
    def max_unpool(
        input: Tensor,
        indices: Tensor,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] | None = None,
        padding: int | tuple[int, ...] = 0,
        output_size: Iterable[int] | None = None,
    ) -> Tensor:
        """`torch.nn.functional.max_unpool{axes}d` with a hand-written backward.

        Args:
            input: `[n, c, *]` or `[c, *]`.
            indices: like `input`, the positions that `max_pool{axes}d` returned.
            kernel_size: that pool's.
            stride: that pool's, the kernel's size if left out.
            padding: that pool's.
            output_size: that pool's input size, where its stride leaves several possible.

        Returns:
            `[n, c, *output_size]` or `[c, *output_size]`.

        Raises:
            ValueError: an output size that this pool cannot have had.
            RuntimeError: shapes or positions that do not go together, in torch's words.
        """
        return MaxUnpoolFunction.call(input, indices, axes, kernel_size, stride, padding, output_size)

    return named(max_unpool, f"max_unpool{axes}d", axes)


max_unpool1d, max_unpool2d, max_unpool3d = map(_max_unpool, (1, 2, 3))


class _MaxUnpool(Handwritten):
    functional: Callable[..., Tensor]

    def forward(self: Any, input: Tensor, indices: Tensor, output_size: Any = None) -> Tensor:
        return self.functional(input, indices, self.kernel_size, self.stride, self.padding, output_size)


class MaxUnpool1d(_MaxUnpool, nn.MaxUnpool1d):
    """`torch.nn.MaxUnpool1d` with a hand-written backward."""

    functional = staticmethod(max_unpool1d)


class MaxUnpool2d(_MaxUnpool, nn.MaxUnpool2d):
    """`torch.nn.MaxUnpool2d` with a hand-written backward."""

    functional = staticmethod(max_unpool2d)


class MaxUnpool3d(_MaxUnpool, nn.MaxUnpool3d):
    """`torch.nn.MaxUnpool3d` with a hand-written backward."""

    functional = staticmethod(max_unpool3d)


def _samples(axes: int) -> Callable[[], Iterable[Sample]]:
    pool: Any = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[axes - 1]

    def samples() -> Iterable[Sample]:
        pooled = pool(randn(2, 2, *(4, 6, 2)[:axes]), 2, return_indices=True)
        yield Sample(args=(2,), inputs=pooled)
        sides = (5, 6, 5)[:axes]
        pooled = pool(randn(2, *sides), 2, return_indices=True)
        yield Sample(args=(2,), inputs=(*pooled, sides), label="output size, unbatched")

    return samples


SPECS = tuple(
    LayerSpec(
        name=f"MaxUnpool{axes}d",
        module=module,
        reference=reference,
        samples=_samples(axes),
        saves="positions",
        saved_bytes=lambda module, inputs, output: nbytes(inputs[1]),
        aliases=(f"max_unpool{axes}d",),
        summary="maxima put back where they came from",
    )
    for axes, module, reference in (
        (1, MaxUnpool1d, nn.MaxUnpool1d),
        (2, MaxUnpool2d, nn.MaxUnpool2d),
        (3, MaxUnpool3d, nn.MaxUnpool3d),
    )
)
