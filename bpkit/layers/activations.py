"""The smooth activations: each a rule beside its forward, in the notation of `elementwise.py`.

    ELU         x > 0: x, else a (eˣ - 1)            δ (x > 0: 1, else a eˣ)
    SELU        λ ELU(x; α)                          λ times ELU's
    CELU        x > 0: x, else a (e^{x/a} - 1)       δ (x > 0: 1, else e^{x/a})
    GELU        x Φ(x)                               δ (Φ(x) + x φ(x))
    SiLU        x σ(x)                               δ σ(x) (1 + x (1 - σ(x)))
    Mish        x t,  t = tanh ln(1 + eˣ)            δ (t + x (1 - t²) σ(x))
    Sigmoid     σ(x) = 1 / (1 + e⁻ˣ)                 δ y (1 - y)
    LogSigmoid  ln σ(x)                              δ σ(-x)
    Softplus    ln(1 + e^{βx}) / β                   δ σ(βx)
    Tanh        tanh x                               δ (1 - y²)
    Tanhshrink  x - tanh x                           δ tanh² x
    Softsign    x s,  s = 1 / (1 + |x|)              δ s²

Φ and φ are the normal distribution and density. At a kink the subgradient is torch's. Exponentials are
kept from overflowing on the side where `where` drops them: an infinity there times a zero would be a
NaN in the second derivative. Of a complex x, δ is multiplied by the conjugate of f'; Softsign's |x| has no
derivative there, and its rule is ∂L/∂x = δ s - (x / |x|) s² Re(δ̄ x).

Sources: Clevert et al. 2016 (ELU); Klambauer et al. 2017 (SELU); Barron 2017 (CELU); Hendrycks & Gimpel
2016 (GELU, SiLU); Misra 2019 (Mish); Dugas et al. 2001 (Softplus); Bergstra et al. 2009 (Softsign).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bpkit.layers.elementwise import elementwise
from bpkit.layers.rectifiers import slope


def _elu(grad_output: Tensor, x: Tensor, a: float) -> Tensor:
    return grad_output * (slope(x, a) * torch.exp(x.clamp(max=0)))


ELU = elementwise(
    "ELU",
    forward=F.elu,
    backward=_elu,
    reference=nn.ELU,
    settings={"alpha": 1.0},
    inplace=True,
    tried=({}, {"alpha": 0.5}),
)

_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946

SELU = elementwise(
    "SELU",
    forward=F.selu,
    backward=lambda grad_output, x: _elu(_SELU_SCALE * grad_output, x, _SELU_ALPHA),
    reference=nn.SELU,
    inplace=True,
)


CELU = elementwise(
    "CELU",
    forward=F.celu,
    backward=lambda grad_output, x, a: grad_output * torch.exp(x.clamp(max=0) / a),
    reference=nn.CELU,
    settings={"alpha": 1.0},
    inplace=True,
    tried=({}, {"alpha": 2.0}),
)


def _gelu(grad_output: Tensor, x: Tensor, approximate: str) -> Tensor:
    if approximate == "tanh":  # Φ(x) ≈ (1 + tanh u) / 2,  u = √(2/π) (x + c x³)
        c, k = 0.044715, math.sqrt(2 / math.pi)
        t = torch.tanh(k * (x + c * (x * x * x)))
        return grad_output * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * (k * (1 + 3 * c * (x * x))))
    cdf = 0.5 * (1 + torch.erf(x * math.sqrt(0.5)))
    bell = torch.exp(-0.5 * (x * x))
    return grad_output * torch.addcmul(cdf, x, bell, value=1 / math.sqrt(2 * math.pi))  # Φ + x φ


GELU = elementwise(
    "GELU",
    forward=lambda x, approximate: F.gelu(x, approximate=approximate),
    backward=_gelu,
    reference=nn.GELU,
    settings={"approximate": "none"},
    keyword_only=True,
    tried=({}, {"approximate": "tanh"}),
)


def _silu(grad_output: Tensor, x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return grad_output * torch.addcmul(s, x * s, 1 - s).conj()


SiLU = elementwise("SiLU", forward=F.silu, backward=_silu, reference=nn.SiLU, inplace=True)


def _mish(grad_output: Tensor, x: Tensor) -> Tensor:
    t = torch.tanh(F.softplus(x))
    return grad_output * torch.addcmul(t, x * torch.sigmoid(x), 1 - t * t)


Mish = elementwise("Mish", forward=F.mish, backward=_mish, reference=nn.Mish, inplace=True)

Sigmoid = elementwise(
    "Sigmoid",
    forward=lambda x: x.sigmoid(),
    backward=lambda grad_output, y: grad_output * ((1 - y) * y).conj(),
    saves="output",
    reference=nn.Sigmoid,
)

LogSigmoid = elementwise(
    "LogSigmoid",
    forward=F.logsigmoid,
    backward=lambda grad_output, x: grad_output * torch.sigmoid(-x),
    reference=nn.LogSigmoid,
)


def _softplus(grad_output: Tensor, x: Tensor, beta: float, threshold: float) -> Tensor:
    z = beta * x
    beyond = (z - threshold).sign().relu()  # 1 or 0: torch takes y = x there
    return grad_output * torch.maximum(torch.sigmoid(z), beyond)


Softplus = elementwise(
    "Softplus",
    forward=F.softplus,
    backward=_softplus,
    reference=nn.Softplus,
    settings={"beta": 1.0, "threshold": 20.0},
    tried=({}, {"beta": 2.0, "threshold": 3.0}),
    autocast={"cuda": "fp32"},
)

Tanh = elementwise(
    "Tanh",
    forward=lambda x: x.tanh(),
    backward=lambda grad_output, y: grad_output * (1 - y * y).conj(),
    saves="output",
    reference=nn.Tanh,
)

Tanhshrink = elementwise(
    "Tanhshrink",
    forward=F.tanhshrink,
    # tanh² x itself is exact near 0, where this cancels; it is torch's sum, and torch's rounding.
    backward=lambda grad_output, x: grad_output - grad_output * (1 - x.tanh().square()).conj(),
    reference=nn.Tanhshrink,
)


def _softsign(grad_output: Tensor, x: Tensor) -> Tensor:
    s = 1 / (1 + x.abs())
    if x.is_complex():
        return grad_output * s - torch.sgn(x) * (s * s * (grad_output.conj() * x).real)
    return grad_output * (s * s + (x - x))  # NaN where y is, at infinity


Softsign = elementwise("Softsign", forward=F.softsign, backward=_softsign, reference=nn.Softsign)

TABLE = (ELU, SELU, CELU, GELU, SiLU, Mish, Sigmoid, LogSigmoid, Softplus, Tanh, Tanhshrink, Softsign)

SPECS = tuple(each.SPEC for each in TABLE)

elu, selu, celu, gelu, silu, mish, sigmoid, logsigmoid, softplus, tanh, tanhshrink, softsign = (
    each.functional for each in TABLE
)
elu_, selu_, celu_ = (each.functional_ for each in (ELU, SELU, CELU))
