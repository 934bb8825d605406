"""Normalisation: the derivation that BatchNorm, InstanceNorm, GroupNorm, LayerNorm and RMSNorm share.

    μ[m] = 1/K Σₖ x[m,k]        r[m] = (1/K Σₖ (x[m,k] - μ[m])² + ε)^(-1/2)    z[m,k] = (x[m,k] - μ[m]) r[m]
    y[m,k] = w[i] z[m,k] + b[i]

m: what has a statistic of its own, k: the K positions that it is taken over; i = i(m,k): which weight a
position reads. RMSNorm is the same with μ = 0. The layers differ in m and i alone:

                       a statistic m for each         over k                        a weight i for each
    BatchNorm          channel                        batch, space                  channel
    InstanceNorm       sample, channel                space                         channel
    GroupNorm          sample, group of channels      channels of the group, space  channel
    LayerNorm          leading position               trailing positions            trailing position

    ∂L/∂w[i] = Σ δ[m,k] z[m,k]        ∂L/∂b[i] = Σ δ[m,k]             over all m, k that read weight i

With γ[m,k] = δ[m,k] w[i], and since ∂z[m,l]/∂x[m,k] = r[m] ([l = k] - 1/K - z[m,l] z[m,k] / K):

    ∂L/∂x[m,k] = r[m] (γ[m,k] - 1/K Σₗ γ[m,l] - z[m,k] 1/K Σₗ γ[m,l] z[m,l])

without the middle term where there is no μ. Statistics that are not x's own (BatchNorm's running ones)
are constants, and leave r[m] γ[m,k].

Every x is viewed as [n, g, k, s]: batch, group, channel of the group, space. w is [1, g, k, 1], and μ
and r keep the axes that they are not taken over. All positions of s share a weight and a statistic, so
every sum begins with Σₛ δ and Σₛ δ (x - μ), two numbers a channel of a sample: two passes over x and δ
give all three gradients. Where there are neither groups nor space (LayerNorm, RMSNorm, BatchNorm of
[n, c]) s is 1, and g is a block of some rows of the batch, which share w: see `in_blocks`.

Saved: x, μ and r (two numbers an m; RMSNorm one). μ and r depend on x, so a backward that is itself
differentiated computes them again from x.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bpkit.core.function import Function
from bpkit.core.fuse import formula
from bpkit.core.layout import channels_last, laid_out
from bpkit.core.precision import widen

Axes = tuple[int, ...]
View = tuple[int, int, int, int]


@formula
def partial_sums(
    delta: Tensor, input: Tensor, mean: Tensor | None, axes: Axes, both: bool
) -> tuple[Tensor, Tensor | None]:
    """Σ δ (x - μ) and Σ δ over `axes`; of one position the latter is δ, and left to the caller."""
    delta = widen(delta)
    sums = summed(delta, axes) if both and any(delta.shape[axis] != 1 for axis in axes) else None
    return summed(delta * _centred(input, mean), axes), sums


@formula
def input_gradient(
    delta: Tensor,
    input: Tensor,
    mean: Tensor | None,
    rstd: Tensor,
    weight: Tensor | None,
    products: Tensor,
    sums: Tensor | None,
    over: Axes,
) -> Tensor:
    """∂L/∂x [n, g, k, s], from the sums Σ δ (x - μ) and Σ δ over space, or over more of `over`."""
    count = max(1, math.prod([delta.shape[axis] for axis in over]))  # of none, 0 / 0 is in the graph
    scale = rstd if weight is None else rstd * weight
    slope = summed(products * scale, over) * rstd * rstd / count  #                  r/K Σ γ z, of x - μ
    scaled = widen(delta) * scale  #                                               γ r
    drift = _centred(input, mean) * slope
    if mean is not None:
        drift = drift + summed(scaled if sums is None else sums * scale, over) / count
    return (scaled - drift).to(input.dtype)


@formula
def _all_gradients(
    delta: Tensor,
    input: Tensor,
    mean: Tensor | None,
    rstd: Tensor,
    weight: Tensor | None,
    over: Axes,
    shared: Axes,
    for_weight: bool,
    for_bias: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """∂L/∂x, Σ δ z and Σ δ in one, for statistics that stay within a sample.

    The sums are over space and the `shared` axes. The one over the batch is left to the caller: down the
    columns of 1024 x 1024 it takes 1,700 µs compiled, 200 as torch's kernel.
    """
    products, sums = partial_sums(delta, input, mean, (3,), mean is not None)
    grad_input = input_gradient(delta, input, mean, rstd, weight, products, sums, over)
    products = summed(products * rstd, shared) if for_weight else None
    if sums is not None:
        sums = summed(sums, shared)
    elif for_bias and any(delta.shape[axis] != 1 for axis in shared):
        sums = summed(widen(delta), shared)
    return grad_input, products, sums


def _centred(input: Tensor, mean: Tensor | None) -> Tensor:
    return widen(input) if mean is None else widen(input) - mean  #                z / r


def summed(tensor: Tensor, axes: Axes) -> Tensor:
    """Over those of `axes` that have more than one position."""
    long = [axis for axis in axes if tensor.shape[axis] != 1]
    return tensor.sum(long, keepdim=True) if long else tensor


def in_blocks(rows: int) -> tuple[int, int]:
    """`rows` as n blocks of g rows, whose sums a formula can take while the rows are in the cache.

    A backward of LayerNorm at 1024 x 1024 floats, compiled: 2.3 ms in blocks of 8, 2.9 row by row.
    """
    if torch.compiler.is_compiling():  # sizes may be symbols
        return rows, 1
    block = math.gcd(rows, 8)
    return rows // block, block


class Normalization(Function):
    """What the Functions of all norms share: `(x, w | None, b | None, ...) -> (y, statistics ...)`.

    A subclass has `forward`, and a `setup_context` that calls `keep`.
    """

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad_output is None:
            return (None,) * ctx.arity
        input, mean, rstd, weight = ctx.saved_tensors
        needs = ctx.needs_input_grad[:3]
        delta = grad_output.reshape(ctx.view)
        if input is not None:
            input = input.reshape(ctx.view)
        if rstd is not None:
            if ctx.over and torch.is_grad_enabled():
                mean, rstd = _statistics(input, ctx.over, ctx.eps, centred=mean is not None)
            else:
                mean, rstd = (
                    None if each is None else widen(each).reshape(ctx.each) for each in (mean, rstd)
                )
                if mean is not None and ctx.view[3] != 1:
                    # One a channel: with one a group Inductor walks over δ twice. GroupNorm, 8 x 32 x 64 x 64
                    # floats on AVX2: 830 µs for the formula so, and 1,250.
                    mean = mean.expand(*delta.shape[:3], 1).contiguous()
        if weight is not None:
            weight = widen(weight).reshape(ctx.weights)
        if delta.is_complex():  # RMSNorm is holomorphic: its gradient is by the conjugate of the derivative
            input, rstd, weight = (None if each is None else each.conj() for each in (input, rstd, weight))
        shared = (1,) if ctx.weights[1] == 1 else ()
        inner = (*shared, 3)
        grad_input = grad_weight = grad_bias = products = sums = None
        if ctx.over and needs[0]:
            if 0 in ctx.over:
                products, sums = partial_sums(delta, input, mean, inner, True)
                products, sums = summed(products, (0,)), summed(widen(delta) if sums is None else sums, (0,))
                grad_input = input_gradient(delta, input, mean, rstd, weight, products, sums, ctx.over)
                products = products * rstd if needs[1] else None
            else:
                grad_input, products, sums = _all_gradients(
                    delta, input, mean, rstd, weight, ctx.over, shared, needs[1], needs[2]
                )
        elif needs[0]:
            grad_input = (widen(delta) * (rstd if weight is None else rstd * weight)).to(delta.dtype)
        if needs[1]:
            if products is None:
                products = partial_sums(delta, input, mean, (3,), False)[0] * rstd
                products = summed(products, shared)
            grad_weight = summed(products, (0,)).reshape(ctx.affine).to(ctx.dtypes[0])
        if needs[2]:
            if sums is None:
                sums = summed(widen(delta), inner)
            grad_bias = summed(sums, (0,)).reshape(ctx.affine).to(ctx.dtypes[1])
        if grad_input is not None:
            grad_input = laid_out(grad_input.reshape(grad_output.shape), ctx.channels_last)
        return grad_input, grad_weight, grad_bias, *(None,) * (ctx.arity - 3)


def keep(
    ctx: Any,
    inputs: tuple[Any, ...],
    mean: Tensor | None,
    rstd: Tensor,
    view: View,
    over: Axes,
    eps: float,
    each: View,
    weights: View,
) -> None:
    """What the backward of a norm reads, on ctx.

    Args:
        ctx: of `setup_context`.
        inputs: of the forward: x, w, b, and what is no tensor to differentiate.
        mean: μ, or None where there is none.
        rstd: r.
        view: `[n, g, k, s]` of x.
        over: the axes of `view` that the statistics are taken over; none for constants.
        eps: added to the variance.
        each: `view`, but 1 along the axes that have no statistic each.
        weights: `view`, but 1 along the axes that have no weight each.
    """
    input, weight, bias = inputs[:3]
    for_input, for_weight, _ = ctx.needs_input_grad[:3]
    reads_input = for_weight or (for_input and bool(over))
    ctx.arity, ctx.view, ctx.over, ctx.eps, ctx.each, ctx.weights = (
        len(inputs),
        view,
        over,
        eps,
        each,
        weights,
    )
    ctx.affine = next((tensor.shape for tensor in (weight, bias) if tensor is not None), None)
    ctx.dtypes = tuple(None if tensor is None else tensor.dtype for tensor in (weight, bias))
    ctx.channels_last = channels_last(input)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(
        input if reads_input else None,
        mean if reads_input else None,
        rstd if reads_input or for_input else None,
        weight if for_input else None,
    )


def _statistics(input: Tensor, over: Axes, eps: float, *, centred: bool) -> tuple[Tensor | None, Tensor]:
    """μ and r of x [n, g, k, s], as functions of it."""
    wide = widen(input)
    if centred:
        variance, mean = torch.var_mean(wide, over, correction=0, keepdim=True)
        return mean, (variance + eps).rsqrt()
    return None, ((wide * wide).mean(over, keepdim=True) + eps).rsqrt()
