"""AdaptiveMaxPool1d, 2d, 3d: the largest of windows laid so that the output has a given size.

    y[p] = x[m(p)]                    m(p) = argmax of x over the window of p (`adaptiveavg.py`)
    ∂L/∂x[q] = Σ_p [m(p) = q] δ[p]    p: output, q: input position

Saved: m, in the narrowest integers that count the plane (torch keeps eight bytes an output, and the input).
Source: He et al., "Spatial pyramid pooling in deep convolutional networks", 2014.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bpkit.core.function import Function
from bpkit.core.module import Handwritten
from bpkit.core.precision import narrowest
from bpkit.core.spec import LayerSpec
from bpkit.layers.adaptiveavg import adaptive_samples, output_sizes
from bpkit.layers.windows import channels_inner, named, scatter_planes, unviewed

MAXIMA: dict[int, Callable[..., Any]] = {
    1: lambda input, size: tuple(map(unviewed, torch.adaptive_max_pool1d(input, size))),
    2: torch._C._nn.adaptive_max_pool2d,
    3: torch._C._nn.adaptive_max_pool3d,
}


class AdaptiveMaxPoolFunction(Function):
    """`(x [*, *q], axes, size) -> (y [*, *p], m [*, *p])`."""

    @staticmethod
    def forward(input: Tensor, axes: int, size: Any) -> tuple[Tensor, Tensor]:
        return MAXIMA[axes](input, size)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        save_positions(ctx, inputs[0], output[1], inputs[1])

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        return positions_gradient(ctx, grad_output), None, None


class AdaptiveMaxPool3dFunction(AdaptiveMaxPoolFunction):
    """`AdaptiveMaxPoolFunction` of three axes, which autocast runs in float32 on CPU."""

    autocast = {"cpu": "fp32"}


def save_positions(ctx: Any, input: Tensor, position: Tensor, axes: int) -> None:
    """Keep for backward where in its plane each maximum came from."""
    ctx.mark_non_differentiable(position)
    ctx.set_materialize_grads(False)
    ctx.size = input.shape[-axes:]
    ctx.inner = channels_inner(input, axes)
    if ctx.needs_input_grad[0]:
        ctx.save_for_backward(position.to(narrowest(ctx.size.numel() - 1)))


def positions_gradient(ctx: Any, grad_output: Tensor | None) -> Tensor | None:
    """∂L/∂x[q] = Σ_p [m(p) = q] δ[p], from what `save_positions` kept."""
    if grad_output is None or not ctx.needs_input_grad[0]:
        return None
    (position,) = ctx.saved_tensors
    start = torch.zeros(position.shape[-len(ctx.size) :], dtype=torch.int64, device=position.device)
    return scatter_planes(grad_output, start, position, ctx.size, ctx.inner)


def positions_bytes(axes: int) -> Callable[..., int]:
    """`saved_bytes` of what `save_positions` keeps."""

    def saved_bytes(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> int:
        values = output[0] if isinstance(output, tuple) else output
        return values.numel() * narrowest(inputs[0].shape[-axes:].numel() - 1).itemsize

    return saved_bytes


def _adaptive_max_pool(axes: int, always: bool = False) -> Callable[..., Any]:
    call = (AdaptiveMaxPool3dFunction if axes == 3 else AdaptiveMaxPoolFunction).call

    def adaptive_max_pool(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
        """`torch.nn.functional.adaptive_max_pool{axes}d` with a hand-written backward.

        Args:
            input: `[n, c, *]` or `[c, *]`.
            output_size: of all axes, or of each; None keeps the input's.
            return_indices: return the positions of the maxima in their plane as well.

        Returns:
            `[n, c, *output_size]` or `[c, *output_size]`; with `return_indices` a pair of them.

        Raises:
            RuntimeError: sizes that do not go together, in torch's words.
        """
        output, position = call(input, axes, output_sizes(output_size, input, axes))
        return (output, position) if return_indices or always else output

    return named(adaptive_max_pool, f"adaptive_max_pool{axes}d" + "_with_indices" * always, axes)


adaptive_max_pool1d, adaptive_max_pool2d, adaptive_max_pool3d = map(_adaptive_max_pool, (1, 2, 3))
adaptive_max_pool1d_with_indices, adaptive_max_pool2d_with_indices, adaptive_max_pool3d_with_indices = (
    _adaptive_max_pool(axes, always=True) for axes in (1, 2, 3)
)


class _AdaptiveMaxPool(Handwritten):
    functional: Callable[..., Any]

    def forward(self: Any, input: Tensor) -> Any:
        return self.functional(input, self.output_size, self.return_indices)


class AdaptiveMaxPool1d(_AdaptiveMaxPool, nn.AdaptiveMaxPool1d):
    """`torch.nn.AdaptiveMaxPool1d` with a hand-written backward."""

    functional = staticmethod(adaptive_max_pool1d)


class AdaptiveMaxPool2d(_AdaptiveMaxPool, nn.AdaptiveMaxPool2d):
    """`torch.nn.AdaptiveMaxPool2d` with a hand-written backward."""

    functional = staticmethod(adaptive_max_pool2d)


class AdaptiveMaxPool3d(_AdaptiveMaxPool, nn.AdaptiveMaxPool3d):
    """`torch.nn.AdaptiveMaxPool3d` with a hand-written backward."""

    functional = staticmethod(adaptive_max_pool3d)


SPECS = tuple(
    LayerSpec(
        name=f"AdaptiveMaxPool{axes}d",
        module=module,
        reference=reference,
        samples=adaptive_samples(axes),
        saves="position of each maximum, one to four bytes an output",
        saved_bytes=positions_bytes(axes),
        aliases=(f"adaptive_max_pool{axes}d",),
        summary="the largest of windows that give an output size",
    )
    for axes, module, reference in (
        (1, AdaptiveMaxPool1d, nn.AdaptiveMaxPool1d),
        (2, AdaptiveMaxPool2d, nn.AdaptiveMaxPool2d),
        (3, AdaptiveMaxPool3d, nn.AdaptiveMaxPool3d),
    )
)
