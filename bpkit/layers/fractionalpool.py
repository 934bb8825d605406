"""FractionalMaxPool2d, 3d: the largest of windows at random places, in an output of any given size.

    y[p] = x[m(p)]                    m(p) = argmax of x over the window of p
    ∂L/∂x[q] = Σ_p [m(p) = q] δ[p]    p: output, q: input position

The windows of all axes follow from one random number each for every plane, drawn as torch draws it.

Saved: m, in the narrowest integers that count the plane (torch keeps eight bytes an output, and the input).
Source: Graham, "Fractional max-pooling", 2014.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bpkit.core.function import Function
from bpkit.core.module import Handwritten
from bpkit.core.spec import LayerSpec, Sample
from bpkit.layers.adaptivemax import positions_bytes, positions_gradient, save_positions
from bpkit.layers.maxpool import distinct
from bpkit.layers.windows import named, per_axis

KERNELS: dict[int, Callable[..., Any]] = {
    2: torch._C._nn.fractional_max_pool2d,
    3: torch._C._nn.fractional_max_pool3d,
}


class FractionalMaxPoolFunction(Function):
    """`(x [n, c, *q], axes, kernel, size, samples [n, c, axes]) -> (y [n, c, *p], m [n, c, *p])`."""

    autocast = {"cpu": "fp32"}

    @staticmethod
    def forward(input: Tensor, axes: int, kernel: Any, size: Any, samples: Tensor) -> tuple[Tensor, Tensor]:
        return KERNELS[axes](input, kernel, size, samples)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        save_positions(ctx, inputs[0], output[1], inputs[1])

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        return positions_gradient(ctx, grad_output), None, None, None, None


def _fractional_max_pool(axes: int, always: bool = False) -> Callable[..., Any]:
    name = f"fractional_max_pool{axes}d"

    def fractional_max_pool(
        input: Tensor,
        kernel_size: int | tuple[int, ...],
        output_size: int | tuple[int, ...] | None = None,
        output_ratio: float | tuple[float, ...] | None = None,
        return_indices: bool = False,
        _random_samples: Tensor | None = None,
    ) -> Any:
        """`torch.nn.functional.fractional_max_pool{axes}d` with a hand-written backward.

        Args:
            input: `[n, c, *]` or `[c, *]`.
            kernel_size: of a window, for all axes or for each.
            output_size: of all axes, or of each.
            output_ratio: the output's size as a part of the input's, instead.
            return_indices: return the positions of the maxima in their plane as well.
            _random_samples: `[n, c, axes]` in [0, 1), where the windows lie; drawn if left out.

        Returns:
            `[n, c, *output_size]` or `[c, *output_size]`; with `return_indices` a pair of them.

        Raises:
            ValueError: neither a size nor a ratio is given.
            RuntimeError: sizes that do not go together, in torch's words.
        """
        if output_size is None:
            if output_ratio is None:
                raise ValueError(f"{name} requires specifying either an output_size or an output_ratio")
            ratios: tuple[Any, ...] = per_axis(output_ratio, axes)
            if len(ratios) > axes:
                raise ValueError(f"{name} requires output_ratio to either be a single Int or tuple of Ints.")
            output_size = tuple(int(input.size(axis - axes) * ratios[axis]) for axis in range(axes))
        if _random_samples is None:
            batch = 1 if input.dim() == axes + 1 else input.size(0)
            _random_samples = torch.rand(
                batch, input.size(-axes - 1), axes, dtype=input.dtype, device=input.device
            )
        output, position = FractionalMaxPoolFunction.call(
            input, axes, kernel_size, output_size, _random_samples
        )
        return (output, position) if return_indices or always else output

    return named(fractional_max_pool, name + "_with_indices" * always, axes)


fractional_max_pool2d, fractional_max_pool3d = map(_fractional_max_pool, (2, 3))
fractional_max_pool2d_with_indices, fractional_max_pool3d_with_indices = (
    _fractional_max_pool(axes, always=True) for axes in (2, 3)
)


class _FractionalMaxPool(Handwritten):
    functional: Callable[..., Any]

    def forward(self: Any, input: Tensor) -> Any:
        return self.functional(
            input,
            self.kernel_size,
            self.output_size,
            self.output_ratio,
            self.return_indices,
            _random_samples=self._random_samples,
        )


class FractionalMaxPool2d(_FractionalMaxPool, nn.FractionalMaxPool2d):
    """`torch.nn.FractionalMaxPool2d` with a hand-written backward."""

    functional = staticmethod(fractional_max_pool2d)


class FractionalMaxPool3d(_FractionalMaxPool, nn.FractionalMaxPool3d):
    """`torch.nn.FractionalMaxPool3d` with a hand-written backward."""

    functional = staticmethod(fractional_max_pool3d)


def _samples(axes: int) -> Callable[[], Iterable[Sample]]:
    sides = (5, 6, 5)[:axes]

    def samples() -> Iterable[Sample]:
        yield Sample(args=(2,), kwargs={"output_size": 3}, inputs=(distinct(2, 2, *sides),), label="size")
        yield Sample(args=(2,), kwargs={"output_ratio": 0.5}, inputs=(distinct(2, *sides),), label="ratio")

    return samples


SPECS = tuple(
    LayerSpec(
        name=f"FractionalMaxPool{axes}d",
        module=module,
        reference=reference,
        samples=_samples(axes),
        saves="position of each maximum, one to four bytes an output",
        saved_bytes=positions_bytes(axes),
        random=True,
        aliases=(f"fractional_max_pool{axes}d",),
        summary="the largest of windows at random places",
    )
    for axes, module, reference in (
        (2, FractionalMaxPool2d, nn.FractionalMaxPool2d),
        (3, FractionalMaxPool3d, nn.FractionalMaxPool3d),
    )
)
