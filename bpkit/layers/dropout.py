"""The dropouts: elements, or whole channels, are dropped with probability p, so that the mean stays.

    y[k] = a (m[k] x[k] + (1 - m[k]) v) + b,   m[k] ~ Bernoulli(1 - p)      k: any position
    ∂L/∂x[k] = a m[k] δ[k]

                                     m drawn for         v       a                              b
    Dropout                          each element        0       1 / (1 - p)                    0
    Dropout1d, 2d, 3d                each n and c        0       1 / (1 - p)                    0
    AlphaDropout                     each element       -λα      ((1 - p) (1 + p v²))^(-1/2)   -a p v
    FeatureAlphaDropout              each n and c       -λα      the same                       the same

λα is the depth of SELU's floor; with that a and b the variance stays as well.

Saved: m, one byte an element (torch keeps a mask in the input's dtype on CPU: four times that).
The mask is drawn by torch's kernel from torch's generator, so it is torch's own mask.
Sources: Srivastava, Hinton, Krizhevsky, Sutskever & Salakhutdinov, "Dropout", JMLR 2014; Tompson et al.,
"Efficient object localization using convolutional networks", 2015 (channels); Klambauer et al. 2017 (alpha).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import _are_functorch_transforms_active

from bpkit.core.function import Function
from bpkit.core.fuse import formula
from bpkit.core.inplace import overwrite
from bpkit.core.module import Handwritten
from bpkit.core.spec import LayerSpec, Sample, randn


@formula
def _gradient(grad_output: Tensor, mask: Tensor, scale: float) -> Tensor:
    return grad_output * mask * scale


class DropoutFunction(Function):
    """`(x [*], p) -> (y [*], mask [*])`."""

    @staticmethod
    def forward(input: Tensor, p: float) -> tuple[Tensor, Tensor]:
        return torch.native_dropout(input, p, True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        _, p, *kind = inputs
        _, mask = output
        ctx.mark_non_differentiable(mask)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(mask)
        ctx.kind = kind
        ctx.scale = _affine(p, *kind[1:])[0]

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        others = (None, *(None for _ in ctx.kind))
        if grad_output is None:
            return None, *others
        (mask,) = ctx.saved_tensors
        return _gradient(grad_output, mask, ctx.scale), *others


class ChannelDropoutFunction(DropoutFunction):
    """`(x [*], p, channels, alpha) -> (y [*], mask [*] or [n, c, 1, …])`."""

    @staticmethod
    def forward(  # type: ignore[override]
        input: Tensor, p: float, channels: bool, alpha: bool
    ) -> tuple[Tensor, Tensor]:
        shape = (*input.shape[:2], *(1 for _ in input.shape[2:])) if channels else input.shape
        if p == 1:  # torch draws nothing
            return input * 0, input.new_zeros(shape, dtype=torch.bool)
        if (
            _are_functorch_transforms_active()
        ):  # not mapped over: `vmap(randomness=...)` says how many are drawn
            mask = torch.bernoulli(torch.empty(shape, dtype=input.dtype, device=input.device), 1 - p)
        elif channels:
            mask = input.new_empty(shape).bernoulli_(1 - p)
        else:  # in the order of memory, which has to be torch's
            mask = torch.empty_like(input).bernoulli_(1 - p)
        scale, floor = _affine(p, alpha)
        if not alpha:
            return input * (mask / (1 - p)), mask.bool()
        return input * (mask * scale) + ((mask - 1) * floor + floor * p), mask.bool()


_FLOOR = 1.7580993408473766  # λα


def _affine(p: float, alpha: bool = False) -> tuple[float, float]:
    """a, and b / p."""
    if p == 1:
        return 0.0, 0.0
    scale = float(((_FLOOR * _FLOOR * p + 1) * (1 - p)) ** -0.5) if alpha else 1 / (1 - p)
    return scale, _FLOOR * scale


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """`torch.nn.functional.dropout` with a hand-written backward.

    Args:
        input: `[*]`, any shape.
        p: the probability of a zero.
        training: draw a mask; else `input` itself is returned.
        inplace: write the result into `input`.

    Returns:
        `[*]`.

    Raises:
        ValueError: p outside [0, 1].
    """
    if _leaves(input, p, training):
        return input
    if p == 1:
        return _drop(input, p, training, inplace, channels=False, alpha=False)
    output: Tensor = DropoutFunction.call(input, p)[0]
    return overwrite(input, output) if inplace else output


def _leaves(input: Tensor, p: float, training: bool) -> bool:
    """Whether `input` is what comes out."""
    if p < 0.0 or p > 1.0:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
    return not training or p == 0 or input.numel() == 0


def _drop(
    input: Tensor, p: float, training: bool, inplace: bool, *, channels: bool, alpha: bool, batch: bool = True
) -> Tensor:
    """The other dropouts; with `batch=False`, of one sample."""
    if _leaves(input, p, training):
        return input
    if channels and input.dim() + (not batch) < 2:
        raise RuntimeError("Feature dropout requires at least 2 dimensions in the input")
    batched = input if batch else input.unsqueeze(0)
    output: Tensor = ChannelDropoutFunction.call(batched, p, channels, alpha)[0]
    output = output if batch else output.squeeze(0)
    return overwrite(input, output) if inplace else output


def dropout1d(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """`torch.nn.functional.dropout1d` by hand; arguments as `dropout`, of `[n, c, l]` or `[c, l]`."""
    _leaves(input, p, training)
    axes = input.dim()
    if axes not in (2, 3):
        raise RuntimeError(
            f"dropout1d: Expected 2D or 3D input, but received a {axes}D input. "
            "Note that dropout1d exists to provide channel-wise dropout on inputs with 1 "
            "spatial dimension, a channel dimension, and an optional batch dimension "
            "(i.e. 2D or 3D inputs)."
        )
    return _drop(input, p, training, inplace, channels=True, alpha=False, batch=axes == 3)


def dropout2d(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """`torch.nn.functional.dropout2d` by hand; arguments as `dropout`, of `[n, c, h, w]`."""
    _leaves(input, p, training)
    _warn_of_axes(input, 2)
    if input.dim() == 3:
        warnings.warn(
            "dropout2d: Received a 3D input to dropout2d and assuming that channel-wise "
            "1D dropout behavior is desired - input is interpreted as shape (N, C, L), where C "
            "is the channel dim. This behavior will change in a future release to interpret the "
            "input as one without a batch dimension, i.e. shape (C, H, W). To maintain the 1D "
            "channel-wise dropout behavior, please switch to using dropout1d instead.",
            stacklevel=2,
        )
    return _drop(input, p, training, inplace, channels=True, alpha=False)


def dropout3d(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """`torch.nn.functional.dropout3d` by hand; arguments as `dropout`, of `[n, c, d, h, w]`."""
    _leaves(input, p, training)
    _warn_of_axes(input, 3)
    return _drop(input, p, training, inplace, channels=True, alpha=False, batch=input.dim() == 5)


def _warn_of_axes(input: Tensor, spatial: int) -> None:
    if input.dim() not in (spatial + 1, spatial + 2):
        warnings.warn(
            f"dropout{spatial}d: Received a {input.dim()}-D input to dropout{spatial}d, which is deprecated "
            "and will result in an error in a future release. To retain the behavior "
            "and silence this warning, please use dropout instead. Note that "
            f"dropout{spatial}d exists to provide channel-wise dropout on inputs with {spatial} spatial "
            f"dimensions, a channel dimension, and an optional batch dimension (i.e. {spatial + 1}D or "
            f"{spatial + 2}D inputs).",
            stacklevel=3,
        )


def alpha_dropout(input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False) -> Tensor:
    """`torch.nn.functional.alpha_dropout` with a hand-written backward; arguments as `dropout`."""
    return _drop(input, p, training, inplace, channels=False, alpha=True)


def feature_alpha_dropout(
    input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False
) -> Tensor:
    """`torch.nn.functional.feature_alpha_dropout` by hand; arguments as `dropout`, of `[n, c, *]`."""
    return _drop(input, p, training, inplace, channels=True, alpha=True)


def _module(reference: Any, function: Callable[..., Tensor], *, inplace: bool = True) -> Any:
    """`reference` with a hand-written backward; torch's alpha pair ignores its `inplace`."""

    def forward(self: Any, input: Tensor) -> Tensor:
        return function(input, self.p, self.training, self.inplace and inplace)

    name = reference.__name__
    doc = f"`torch.nn.{name}` with a hand-written backward."
    return type(name, (Handwritten, reference), {"forward": forward, "__module__": __name__, "__doc__": doc})


Dropout = _module(nn.Dropout, dropout)
Dropout1d = _module(nn.Dropout1d, dropout1d)
Dropout2d = _module(nn.Dropout2d, dropout2d)
Dropout3d = _module(nn.Dropout3d, dropout3d)
AlphaDropout = _module(nn.AlphaDropout, alpha_dropout, inplace=False)
FeatureAlphaDropout = _module(nn.FeatureAlphaDropout, feature_alpha_dropout, inplace=False)


def _samples(*shape: int) -> Iterable[Sample]:
    yield Sample(args=(0.4,), inputs=(randn(*shape),))
    yield Sample(args=(1.0,), inputs=(randn(*shape),), label="p=1")
    yield Sample(args=(0.4,), inputs=(randn(*shape),), train=False, label="eval")


SPECS = tuple(
    LayerSpec(
        name=module.__name__,
        module=module,
        reference=getattr(nn, module.__name__),
        samples=lambda shape=shape: _samples(*shape),  # type: ignore[misc]
        saves="mask, a byte an element" if elements else "mask, a byte a channel",
        saved_bytes=lambda module, inputs, output, elements=elements: (  # type: ignore[misc]
            (output.numel() if elements else output.shape[:2].numel()) if module.training else 0
        ),
        random=True,
        aliases=(alias,),
        summary=summary,
    )
    for module, alias, shape, elements, summary in (
        (Dropout, "dropout", (5, 6), True, "random zeros"),
        (Dropout1d, "dropout1d", (3, 4, 2), False, "random channels zero"),
        (Dropout2d, "dropout2d", (2, 3, 2, 2), False, "random channels zero"),
        (Dropout3d, "dropout3d", (2, 3, 2, 1, 2), False, "random channels zero"),
        (AlphaDropout, "alpha_dropout", (5, 6), True, "random floors, mean and variance kept"),
        (FeatureAlphaDropout, "feature_alpha_dropout", (3, 4, 2), False, "random channels at the floor"),
    )
)
