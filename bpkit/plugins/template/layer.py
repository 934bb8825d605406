"""The example of a layer that `bpkit new-plugin` writes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bpkit import Function, Handwritten, LayerSpec, Sample, hookimpl
from bpkit.core.spec import nbytes, randn


class SoftcapFunction(Function):
    """`(x [*], c) -> [*]`: y = c tanh(x / c), which is x near 0 and never leaves [-c, c].

        ∂L/∂x[k] = δ[k] (1 - tanh²(x[k] / c))          k: any position,  δ = ∂L/∂y

    Saved: x. Source: Gemma Team, "Gemma 2", 2024, section 2 (logit soft-capping).
    """

    @staticmethod
    def forward(input: Tensor, cap: float) -> Tensor:
        return cap * torch.tanh(input / cap)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, ctx.cap = inputs
        ctx.save_for_backward(input)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        (input,) = ctx.saved_tensors
        t = torch.tanh(input / ctx.cap)
        return grad_output * (1 - t * t), None


class PlainSoftcap(nn.Module):
    """The same in plain torch: what the proof compares with, and `bpkit.convert` replaces.

    For a layer that torch has, this is torch's class, such as `torch.nn.Mish`.
    """

    def __init__(self, cap: float = 30.0) -> None:
        super().__init__()
        self.cap = cap

    def forward(self, input: Tensor) -> Tensor:
        """`[*] -> [*]`."""
        return self.cap * torch.tanh(input / self.cap)

    def extra_repr(self) -> str:
        """Shown by `print(model)`."""
        return f"cap={self.cap}"


class Softcap(Handwritten, PlainSoftcap):
    """Soft-capping with a hand-written backward."""

    def forward(self, input: Tensor) -> Tensor:
        """`[*] -> [*]`."""
        output: Tensor = SoftcapFunction.call(input, self.cap)
        return output


def _softcap_samples() -> Iterable[Sample]:
    yield Sample(inputs=(randn(4, 6),))
    yield Sample(args=(0.5,), inputs=(randn(3, 2, 5),), label="saturated")


@hookimpl
def bpkit_layers() -> Iterable[LayerSpec]:
    """The layers: each proven by `bpkit verify`, against its reference, on its samples."""
    return [
        LayerSpec(
            name="mine.Softcap",
            module=Softcap,
            reference=PlainSoftcap,
            samples=_softcap_samples,
            saves="input",
            saved_bytes=lambda module, inputs, output: nbytes(*inputs),
            summary="the identity near 0, bounded by a cap",
        )
    ]
