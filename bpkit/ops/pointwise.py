"""Operators of single elements: for y = f(x, …), ∂L/∂x[k] = g[k] ∂f/∂x[k].

Where a function has a kink the subgradient is torch's: 0 for |x| at 0, an equal share at the tie of a
maximum, all of g inside a clamp and on its edge.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bpkit.ops.op import op


def _zeros(g: Tensor) -> Tensor:
    return torch.zeros_like(g)


# Sums and products.
add = op(
    lambda input, other, alpha=1: torch.add(input, other, alpha=alpha),
    name="add",
    input=lambda g: g,
    other=lambda g, alpha: g if alpha == 1 else g * alpha,
)
sub = op(
    lambda input, other, alpha=1: torch.sub(input, other, alpha=alpha),
    name="sub",
    input=lambda g: g,
    other=lambda g, alpha: -g if alpha == 1 else g * -alpha,
)
rsub = op(
    lambda input, other, alpha=1: torch.rsub(input, other, alpha=alpha),
    name="rsub",
    input=lambda g, alpha: -g if alpha == 1 else g * -alpha,
    other=lambda g: g,
)
mul = op(
    lambda input, other: torch.mul(input, other),
    name="mul",
    input=lambda g, other: g * other,
    other=lambda g, input: g * input,
)
addcmul = op(
    lambda input, tensor1, tensor2, value=1: torch.addcmul(input, tensor1, tensor2, value=value),
    name="addcmul",
    input=lambda g: g,
    tensor1=lambda g, tensor2, value: g * (tensor2 * value),
    tensor2=lambda g, tensor1, value: g * (tensor1 * value),
)


def _div_other(g: Tensor, input: Any, other: Tensor, rounding_mode: str | None) -> Tensor:
    return -g * ((input / other) / other) if rounding_mode is None else _zeros(g)


div = op(
    lambda input, other, rounding_mode=None: torch.div(input, other, rounding_mode=rounding_mode),
    name="div",
    input=lambda g, other, rounding_mode: g / other if rounding_mode is None else _zeros(g),
    other=_div_other,
)
addcdiv = op(
    lambda input, tensor1, tensor2, value=1: torch.addcdiv(input, tensor1, tensor2, value=value),
    name="addcdiv",
    input=lambda g: g,
    tensor1=lambda g, tensor2, value: g * (value / tensor2),
    tensor2=lambda g, tensor1, tensor2, value: -g * (value * tensor1 / (tensor2 * tensor2)),
)
fmod = op(
    lambda input, other: torch.fmod(input, other),
    name="fmod",
    holomorphic=False,
    input=lambda g: g,
    other=lambda g, input, other: -g * torch.div(input, other, rounding_mode="trunc"),
)
remainder = op(
    lambda input, other: torch.remainder(input, other),
    name="remainder",
    holomorphic=False,
    input=lambda g: g,
    other=lambda g, input, other: -g * torch.div(input, other, rounding_mode="floor"),
)


lerp = op(
    lambda input, end, weight: torch.lerp(input, end, weight),
    name="lerp",
    input=lambda g, weight: g * (1 - weight),
    end=lambda g, weight: g * weight,
    weight=lambda g, input, end: g * (end - input),
)
neg = op(lambda input: torch.neg(input), name="neg", input=lambda g: -g)
reciprocal = op(
    lambda input: torch.reciprocal(input), name="reciprocal", input=lambda g, out: -g * (out * out)
)


# Powers, exponentials, logarithms.
def _pow_input(g: Tensor, input: Tensor, exponent: Any) -> Tensor:
    """G e x^(e-1), and 0 where e is 0, whatever x is."""
    if not isinstance(exponent, Tensor):
        return _zeros(g) if exponent == 0 else g * (exponent * input ** (exponent - 1))
    power = torch.where(exponent == 0, 1, input) ** (exponent - 1)
    return torch.where(exponent == 0, 0, g * (exponent * power))


def _pow_exponent(g: Tensor, input: Any, exponent: Tensor, out: Tensor) -> Tensor:
    """G xᵉ ln x, and 0 at 0ᵉ."""
    if not isinstance(input, Tensor):  # its logarithm in double: float32's would show in a float64 gradient
        input = torch.tensor(input, dtype=torch.promote_types(out.dtype, torch.float64), device=out.device)
    zero = (input == 0) & (exponent.real >= 0 if exponent.is_complex() else exponent >= 0)
    return torch.where(zero, 0, g * (out * torch.where(zero, 1, input).log()))


pow = op(
    lambda input, exponent: torch.pow(input, exponent),
    name="pow",
    input=_pow_input,
    exponent=_pow_exponent,
)
square = op(lambda input: torch.square(input), name="square", input=lambda g, input: g * (2 * input))
sqrt = op(lambda input: torch.sqrt(input), name="sqrt", input=lambda g, out: g / (2 * out))
rsqrt = op(lambda input: torch.rsqrt(input), name="rsqrt", input=lambda g, out: g * (-0.5 * out * out * out))
exp = op(lambda input: torch.exp(input), name="exp", input=lambda g, out: g * out)
exp2 = op(lambda input: torch.exp2(input), name="exp2", input=lambda g, out: g * (out * math.log(2)))
expm1 = op(lambda input: torch.expm1(input), name="expm1", input=lambda g, out: g * (out + 1))
log = op(lambda input: torch.log(input), name="log", input=lambda g, input: g / input)
log2 = op(lambda input: torch.log2(input), name="log2", input=lambda g, input: g / (input * math.log(2)))
log10 = op(lambda input: torch.log10(input), name="log10", input=lambda g, input: g / (input * math.log(10)))
log1p = op(lambda input: torch.log1p(input), name="log1p", input=lambda g, input: g / (input + 1))
logaddexp = op(
    lambda input, other: torch.logaddexp(input, other),
    name="logaddexp",
    holomorphic=False,
    input=lambda g, input, other: g * torch.sigmoid(input - other),
    other=lambda g, input, other: g * torch.sigmoid(other - input),
)


def _xlogy_self(g: Tensor, input: Tensor, other: Any) -> Tensor:
    """G ln t, and 0 where torch's is: beside a g of 0, and where x and t are."""
    other = torch.as_tensor(other, dtype=g.dtype, device=g.device)
    nothing = (input == 0) & (other <= 0)
    return torch.xlogy(g, torch.where(nothing, 1, other))


xlogy = op(
    lambda input, other: torch.xlogy(input, other),
    name="xlogy",
    holomorphic=False,
    input=_xlogy_self,
    other=lambda g, input, other: g * (input / other),
)

# Circular and hyperbolic functions, and the normal distribution's.
sin = op(lambda input: torch.sin(input), name="sin", input=lambda g, input: g * input.cos())
cos = op(lambda input: torch.cos(input), name="cos", input=lambda g, input: -g * input.sin())
tan = op(lambda input: torch.tan(input), name="tan", input=lambda g, out: g * (1 + out * out))
asin = op(
    lambda input: torch.asin(input), name="asin", input=lambda g, input: g * (1 - input * input).rsqrt()
)
acos = op(
    lambda input: torch.acos(input), name="acos", input=lambda g, input: -g * (1 - input * input).rsqrt()
)
atan = op(lambda input: torch.atan(input), name="atan", input=lambda g, input: g / (1 + input * input))
sinh = op(lambda input: torch.sinh(input), name="sinh", input=lambda g, input: g * input.cosh())
cosh = op(lambda input: torch.cosh(input), name="cosh", input=lambda g, input: g * input.sinh())
asinh = op(
    lambda input: torch.asinh(input), name="asinh", input=lambda g, input: g * (input * input + 1).rsqrt()
)
atanh = op(lambda input: torch.atanh(input), name="atanh", input=lambda g, input: g / (1 - input * input))
atan2 = op(
    lambda input, other: torch.atan2(input, other),
    name="atan2",
    holomorphic=False,
    input=lambda g, input, other: _over(g * other, input, other),
    other=lambda g, input, other: _over(-g * input, input, other),
)


def _over(numerator: Tensor, input: Tensor, other: Tensor) -> Tensor:
    """Divided by x² + y²; 0 at the origin, as torch has it."""
    radius = input * input + other * other
    return (numerator / torch.where(radius == 0, 1, radius)).masked_fill(radius == 0, 0)


_BELL = 2 / math.sqrt(math.pi)
erf = op(
    lambda input: torch.erf(input),
    name="erf",
    input=lambda g, input: g * (_BELL * torch.exp(-(input * input))),
)
erfc = op(
    lambda input: torch.erfc(input),
    name="erfc",
    input=lambda g, input: g * (-_BELL * torch.exp(-(input * input))),
)
erfinv = op(
    lambda input: torch.erfinv(input),
    name="erfinv",
    input=lambda g, input: g * (torch.exp(torch.erfinv(input) ** 2) / _BELL),
)
lgamma = op(lambda input: torch.lgamma(input), name="lgamma", input=lambda g, input: g * input.digamma())


# Kinks, choices and steps.
abs = op(  # of complex numbers δ input/|input|: not of the conjugate, which a rule is given
    lambda input: torch.abs(input), name="abs", input=lambda g, input: g * input.conj().sgn()
)


def _larger_share(g: Tensor, a: Any, b: Any) -> Tensor:
    """G where a is larger, half of it at a tie, 0 elsewhere."""
    return torch.where(a == b, g / 2, g).masked_fill(a < b, 0)


maximum = op(
    lambda input, other: torch.maximum(input, other),
    name="maximum",
    holomorphic=False,
    input=lambda g, input, other: _larger_share(g, input, other),
    other=lambda g, input, other: _larger_share(g, other, input),
)
minimum = op(
    lambda input, other: torch.minimum(input, other),
    name="minimum",
    holomorphic=False,
    input=lambda g, input, other: _larger_share(g, other, input),
    other=lambda g, input, other: _larger_share(g, input, other),
)


def _clamp_input(g: Tensor, input: Tensor, min: Any, max: Any) -> Tensor:
    if min is not None:
        g = torch.where(input >= min, g, 0)
    return g if max is None else torch.where(input <= max, g, 0)


def _clamp_min(g: Tensor, input: Tensor, min: Tensor, max: Any) -> Tensor:
    below = input < min
    return torch.where(below if max is None else below & (min < max), g, 0)


def _clamp_max(g: Tensor, input: Tensor, min: Any, max: Tensor) -> Tensor:
    above = input > max
    return torch.where(above if min is None else above | (max < min), g, 0)


clamp = op(
    lambda input, min=None, max=None: torch.clamp(input, min, max),
    name="clamp",
    holomorphic=False,
    input=_clamp_input,
    min=_clamp_min,
    max=_clamp_max,
)
where = op(
    lambda condition, input, other: torch.where(condition, input, other),
    name="where",
    input=lambda g, condition: torch.where(condition, g, 0),
    other=lambda g, condition: torch.where(condition, 0, g),
)
masked_fill = op(
    lambda input, mask, value: input.masked_fill(mask, value),
    name="masked_fill",
    input=lambda g, mask: g.masked_fill(mask, 0),
    value=lambda g, mask: torch.where(mask, g, 0),
)
nan_to_num = op(
    lambda input, nan=0.0, posinf=None, neginf=None: torch.nan_to_num(input, nan, posinf, neginf),
    name="nan_to_num",
    holomorphic=False,
    input=lambda g, input: g * input.isfinite(),
)
sign, floor, ceil, trunc, round = (
    op(forward, name=name, holomorphic=False, input=_zeros)
    for name, forward in (
        ("sign", lambda input: torch.sign(input)),
        ("floor", lambda input: torch.floor(input)),
        ("ceil", lambda input: torch.ceil(input)),
        ("trunc", lambda input: torch.trunc(input)),
        ("round", lambda input, decimals=0: torch.round(input, decimals=decimals)),
    )
)
