"""The piecewise activations: each a rule beside its forward, in the notation of `elementwise.py`.

    ReLU         max(x, 0)                                 δ [y > 0]
    ReLU6        min(max(x, 0), 6)                         δ [0 < x < 6]
    Hardtanh     min(max(x, a), b)                         δ [a < x < b]
    LeakyReLU    x > 0: x, else a x                        δ (x > 0: 1, else a)
    Threshold    x > t: x, else v                          δ [x > t]
    Hardshrink   |x| > λ: x, else 0                        δ [|x| > λ]
    Softshrink   x - λ sign x where |x| > λ, else 0        δ [|x| > λ]
    Hardsigmoid  min(max(x/6 + 1/2, 0), 1)                 δ/6 [|x| < 3]
    Hardswish    x min(max(x/6 + 1/2, 0), 1)               δ (x ≤ -3: 0, x < 3: x/3 + 1/2, else 1)

At a kink, and at NaN, the subgradient is that of torch's vector kernels. Where the rule cannot tell y from x,
an in-place call reads y and keeps nothing.

Sources: Nair & Hinton 2010 (ReLU); Maas et al. 2013 (LeakyReLU); Donoho & Johnstone 1994 (the shrinking
pair); Howard et al. 2019 (Hardswish).
"""

from __future__ import annotations

import struct

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bpkit.core.mask import nonzero
from bpkit.layers.elementwise import REQUIRED, elementwise

ReLU = elementwise(
    "ReLU",
    forward=F.relu,
    # No y is negative. Where it is 0 so is the gradient, whatever grad_output is: an infinity, too.
    backward=lambda grad_output, y: torch.where(nonzero(y), grad_output, y),
    saves="output",
    reference=nn.ReLU,
    inplace=True,
)


def _between(grad_output: Tensor, x: Tensor, low: float, high: float) -> Tensor:
    return torch.where((x > low) & (x < high), grad_output, 0.0)


ReLU6 = elementwise(
    "ReLU6",
    forward=F.relu6,
    backward=lambda grad_output, x: _between(grad_output, x, 0, 6),
    reference=nn.ReLU6,
    inplace=True,
    from_output=lambda: True,
)

Hardtanh = elementwise(
    "Hardtanh",
    forward=F.hardtanh,
    backward=_between,
    reference=nn.Hardtanh,
    settings={"min_val": -1.0, "max_val": 1.0},
    inplace=True,
    from_output=lambda low, high: True,
    tried=({}, {"min_val": -2.0, "max_val": 0.3}),
)


def slope(x: Tensor, a: float) -> Tensor:
    """1 where x > 0, else a. Eager, 64 x 128 floats on AVX2: 7 µs, and 28 by `torch.where(x > 0, 1, a)`."""
    return torch.threshold(x.sign(), 0, a)


LeakyReLU = elementwise(
    "LeakyReLU",
    functional="leaky_relu",
    forward=F.leaky_relu,
    backward=lambda grad_output, x, a: grad_output * slope(x, a),
    reference=nn.LeakyReLU,
    settings={"negative_slope": 0.01},
    inplace=True,
    from_output=lambda a: a >= 0,
    tried=({}, {"negative_slope": 0.3}),
)

Threshold = elementwise(
    "Threshold",
    forward=F.threshold,
    backward=lambda grad_output, x, threshold, value: torch.where(x <= threshold, 0.0, grad_output),
    reference=nn.Threshold,
    settings={"threshold": REQUIRED, "value": REQUIRED},
    inplace=True,
    from_output=lambda threshold, value: value <= threshold,
    tried=({"threshold": 0.1, "value": -1.0}, {"threshold": -0.2, "value": 20.0}),
)


def _outside(grad_output: Tensor, x: Tensor, lambd: float) -> Tensor:
    return torch.where(x.abs() > lambd, grad_output, 0.0)


Hardshrink = elementwise(
    "Hardshrink",
    forward=F.hardshrink,
    backward=_outside,
    reference=nn.Hardshrink,
    settings={"lambd": 0.5},
    tried=({}, {"lambd": 1.3}),
)

Softshrink = elementwise(
    "Softshrink",
    forward=F.softshrink,
    backward=_outside,
    reference=nn.Softshrink,
    settings={"lambd": 0.5},
    tried=({}, {"lambd": 1.3}),
)

# In torch's kernel a sixth is a float32's, in float64 too: 3e-8 off, and so are its float64 gradients.
_SIXTH = struct.unpack("f", struct.pack("f", 1 / 6))[0]

Hardsigmoid = elementwise(
    "Hardsigmoid",
    forward=F.hardsigmoid,
    backward=lambda grad_output, x: torch.where(x.abs() < 3, grad_output * _SIXTH, 0.0),
    reference=nn.Hardsigmoid,
    inplace=True,
)

Hardswish = elementwise(
    "Hardswish",
    forward=F.hardswish,
    backward=lambda grad_output, x: torch.where(
        x <= -3, 0.0, torch.where(x >= 3, grad_output, grad_output * (x / 3 + 0.5))
    ),
    reference=nn.Hardswish,
    inplace=True,
)

TABLE = (ReLU, ReLU6, Hardtanh, LeakyReLU, Threshold, Hardshrink, Softshrink, Hardsigmoid, Hardswish)

SPECS = tuple(each.SPEC for each in TABLE)

relu, relu6, hardtanh, leaky_relu, threshold, hardshrink, softshrink, hardsigmoid, hardswish = (
    each.functional for each in TABLE
)
relu_, hardtanh_, leaky_relu_, threshold_ = (
    each.functional_ for each in (ReLU, Hardtanh, LeakyReLU, Threshold)
)
