"""PixelShuffle, PixelUnshuffle, ChannelShuffle: the same elements in another order.

    PixelShuffle      y[n, c, r h + i, r w + j] = x[n, c r² + i r + j, h, w]             r: the factor
    PixelUnshuffle    the inverse
    ChannelShuffle    y[n, k g + a] = x[n, a C/g + k]                                    a: group of g, of C

A permutation's transpose is its inverse, so ∂L/∂x is δ put back: by the other of the first two, and by the
last with C/g groups.

Saved: nothing.
Sources: Shi et al., "Real-time single image and video super-resolution", 2016; Zhang et al.,
"ShuffleNet", 2018.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bpkit.core.function import Function
from bpkit.core.module import Handwritten
from bpkit.core.spec import LayerSpec, Sample, randn


class PixelShuffleFunction(Function):
    """`(x [*, c r², h, w], r) -> [*, c, r h, r w]`."""

    @staticmethod
    def forward(input: Tensor, upscale_factor: int) -> Tensor:
        return torch.pixel_shuffle(input, upscale_factor)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.factor = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        return torch.pixel_unshuffle(grad_output, ctx.factor), None


class PixelUnshuffleFunction(PixelShuffleFunction):
    """`(x [*, c, r h, r w], r) -> [*, c r², h, w]`."""

    @staticmethod
    def forward(input: Tensor, downscale_factor: int) -> Tensor:
        return torch.pixel_unshuffle(input, downscale_factor)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        return torch.pixel_shuffle(grad_output, ctx.factor), None


class ChannelShuffleFunction(Function):
    """`(x [n, c, *], g) -> [n, c, *]`."""

    @staticmethod
    def forward(input: Tensor, groups: int) -> Tensor:
        return torch.channel_shuffle(input, groups)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, groups = inputs
        ctx.groups = max(1, input.shape[1] // groups)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        return torch.channel_shuffle(grad_output, ctx.groups), None


def pixel_shuffle(input: Tensor, upscale_factor: int) -> Tensor:
    """`torch.nn.functional.pixel_shuffle` by hand: `[*, c r², h, w]` to `[*, c, r h, r w]`."""
    return PixelShuffleFunction.call(input, upscale_factor)


def pixel_unshuffle(input: Tensor, downscale_factor: int) -> Tensor:
    """`torch.nn.functional.pixel_unshuffle` with a hand-written backward: `pixel_shuffle`'s inverse."""
    return PixelUnshuffleFunction.call(input, downscale_factor)


def channel_shuffle(input: Tensor, groups: int) -> Tensor:
    """`torch.nn.functional.channel_shuffle` by hand: `[n, c, *]`, c divisible by `groups`."""
    return ChannelShuffleFunction.call(input, groups)


class PixelShuffle(Handwritten, nn.PixelShuffle):
    """`torch.nn.PixelShuffle` with a hand-written backward."""

    def forward(self, input: Tensor) -> Tensor:
        return pixel_shuffle(input, self.upscale_factor)


class PixelUnshuffle(Handwritten, nn.PixelUnshuffle):
    """`torch.nn.PixelUnshuffle` with a hand-written backward."""

    def forward(self, input: Tensor) -> Tensor:
        return pixel_unshuffle(input, self.downscale_factor)


class ChannelShuffle(Handwritten, nn.ChannelShuffle):
    """`torch.nn.ChannelShuffle` with a hand-written backward."""

    def forward(self, input: Tensor) -> Tensor:
        return channel_shuffle(input, self.groups)


def _samples(*shapes: tuple[int, ...]) -> Iterable[Sample]:
    for shape in shapes:
        yield Sample(args=(2,), inputs=(randn(*shape),), label=f"{len(shape)} axes")


SPECS = tuple(
    LayerSpec(
        name=module.__name__,
        module=module,
        reference=reference,
        samples=lambda shapes=shapes: _samples(*shapes),  # type: ignore[misc]
        saves="nothing",
        saved_bytes=lambda module, inputs, output: 0,
        aliases=(alias,),
        summary=summary,
    )
    for module, reference, alias, summary, shapes in (
        (
            PixelShuffle,
            nn.PixelShuffle,
            "pixel_shuffle",
            "channels into a finer plane",
            ((2, 4, 2, 3), (8, 3, 2)),
        ),
        (
            PixelUnshuffle,
            nn.PixelUnshuffle,
            "pixel_unshuffle",
            "a plane into channels",
            ((2, 1, 4, 6), (2, 2, 4)),
        ),
        (
            ChannelShuffle,
            nn.ChannelShuffle,
            "channel_shuffle",
            "channels of all groups mixed",
            ((2, 6, 2), (1, 4, 3, 2)),
        ),
    )
)
