"""Padding: every module and mode, along one, two or three axes.

    y[p] = x[s(p)] where s(p) is a position of x, else the constant               p, q: along each padded axis
    ∂L/∂x[q] = Σ_p [s(p) = q] δ[p]

With l places before an axis of n and r after it (negative: cut away), p - l runs on past both ends, and s is

    constant    p - l, nothing outside
    replicate   the nearer end                 the border's δ is summed into that end
    reflect     mirrored at the end itself     the border's δ, reversed, is added beside that end
    circular    modulo n                       the border's δ is added at the other end

so the gradient is δ without its borders, and one addition a border, axis by axis. No border is longer than
x itself where it is mirrored or wrapped.

Saved: nothing.
Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.pad.html.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from bpkit.core.function import Function
from bpkit.core.module import Handwritten
from bpkit.core.spec import LayerSpec, Sample, randn


class PadFunction(Function):
    """`(x [*], pad: (l, r) of the last axis, then of the one before …, mode, value | None) -> [*]`."""

    @staticmethod
    def forward(input: Tensor, pad: tuple[int, ...], mode: str, value: float | None) -> Tensor:
        return F.pad(input, list(pad), mode, value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.pad, ctx.mode, _ = inputs

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, None]:
        if ctx.mode == "constant":
            return F.pad(grad_output, [-each for each in ctx.pad]), None, None, None
        cut = [max(-each, 0) for each in ctx.pad]
        gradient = grad_output
        if ctx.mode != "circular" and any(cut):  # these look beyond a cut; circular wraps what is left
            gradient = F.pad(gradient, cut)
        for place in range(len(ctx.pad) // 2):
            before, after = (max(each, 0) for each in ctx.pad[2 * place : 2 * place + 2])
            if before or after:
                gradient = _folded(gradient, -1 - place, before, after, ctx.mode)
        if ctx.mode == "circular" and any(cut):
            gradient = F.pad(gradient, cut)
        return gradient, None, None, None


def _folded(padded: Tensor, axis: int, before: int, after: int, mode: str) -> Tensor:
    """∂L/∂x along one axis: the borders of `padded` added to where they came from."""
    n = padded.shape[axis] - before - after
    inner = padded.narrow(axis, before, n).clone()
    for start, length, at_end in ((0, before, False), (before + n, after, True)):
        if not length:
            continue
        border = padded.narrow(axis, start, length)
        if mode == "replicate":
            at, border = (n - 1 if at_end else 0), border.sum(axis, keepdim=True)
        elif mode == "reflect":
            at, border = (n - 1 - length if at_end else 1), border.flip(axis)
        else:
            at = 0 if at_end else n - length
        inner.narrow(axis, at, border.shape[axis]).add_(border)
    return inner


def pad(input: Tensor, pad: Iterable[int], mode: str = "constant", value: float | None = None) -> Tensor:
    """`torch.nn.functional.pad` with a hand-written backward.

    Args:
        input: `[*]`.
        pad: places before and after the last axis, then of the axis before it, and so on; negative cuts.
        mode: `"constant"`, `"reflect"`, `"replicate"` or `"circular"`.
        value: the constant, 0 if left out.

    Returns:
        `[*]`.

    Raises:
        RuntimeError, NotImplementedError: borders that do not fit, in torch's words.
    """
    sides = tuple(pad)
    if mode == "circular" and any(each < 0 for each in sides):
        sizes = reversed([size for size in input.shape[-(len(sides) // 2) :] for _ in "lr"])
        left = [
            size + min(sides[i // 2 * 2], 0) + min(sides[i // 2 * 2 + 1], 0) for i, size in enumerate(sizes)
        ]
        if any(each > size for each, size in zip(sides, left, strict=True)):
            # torch does not look, and hands out memory that was never written.
            raise RuntimeError("Padding value causes wrapping around more than once.")
    return PadFunction.call(input, sides, mode, value)


def _module(reference: Any, mode: str) -> Any:
    """A padding module: `reference` with the hand-written `pad`."""

    def forward(self: Any, input: Tensor) -> Tensor:
        if mode == "circular":
            self._check_input_dim(input)
        return pad(input, self.padding, mode, getattr(self, "value", None))

    name = reference.__name__
    doc = f"`torch.nn.{name}` with a hand-written backward."
    return type(name, (Handwritten, reference), {"forward": forward, "__module__": __name__, "__doc__": doc})


ConstantPad1d, ConstantPad2d, ConstantPad3d, ZeroPad1d, ZeroPad2d, ZeroPad3d = (
    _module(each, "constant")
    for each in (
        nn.ConstantPad1d,
        nn.ConstantPad2d,
        nn.ConstantPad3d,
        nn.ZeroPad1d,
        nn.ZeroPad2d,
        nn.ZeroPad3d,
    )
)
ReflectionPad1d, ReflectionPad2d, ReflectionPad3d = (
    _module(each, "reflect") for each in (nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d)
)
ReplicationPad1d, ReplicationPad2d, ReplicationPad3d = (
    _module(each, "replicate") for each in (nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d)
)
CircularPad1d, CircularPad2d, CircularPad3d = (
    _module(each, "circular") for each in (nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d)
)


def _samples(axes: int, more: tuple[Any, ...]) -> Iterable[Sample]:
    sizes = (3, 4, 2)[:axes]
    yield Sample(args=(1, *more), inputs=(randn(2, 2, *sizes),))
    uneven = (0, 2, 1, 0, 0, 1)[: 2 * axes]
    yield Sample(args=(uneven, *more), inputs=(randn(1, 2, *(each + 1 for each in sizes)),), label="uneven")
    yield Sample(args=((-1, 1) * axes, *more), inputs=(randn(1, 2, *(4,) * axes),), label="cut")


def _spec(module: Any) -> LayerSpec:
    name = module.__name__
    axes = int(name[-2])
    more = (1.5,) if name.startswith("Constant") else ()
    return LayerSpec(
        name=name,
        module=module,
        reference=getattr(nn, name),
        samples=lambda: _samples(axes, more),
        saves="nothing",
        saved_bytes=lambda module, inputs, output: 0,
        summary=f"{name[:-5].lower()} borders",
    )


SPECS = tuple(
    map(
        _spec,
        (
            *(ConstantPad1d, ConstantPad2d, ConstantPad3d, ZeroPad1d, ZeroPad2d, ZeroPad3d),
            *(ReflectionPad1d, ReflectionPad2d, ReflectionPad3d),
            *(ReplicationPad1d, ReplicationPad2d, ReplicationPad3d),
            *(CircularPad1d, CircularPad2d, CircularPad3d),
        ),
    )
)
