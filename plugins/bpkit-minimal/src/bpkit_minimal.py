"""Squareplus, a smooth ReLU without an exponential (Barron, "Squareplus", 2021).

y = (x + √(x² + 4)) / 2          ∂L/∂x = δ (1 + x / √(x² + 4)) / 2          δ = ∂L/∂y
"""

import bpkit
import torch
from bpkit.layers.elementwise import elementwise

Squareplus = elementwise(
    "Squareplus",
    forward=lambda x: (x + torch.sqrt(x * x + 4)) / 2,
    backward=lambda grad_output, x: grad_output * (1 + x / torch.sqrt(x * x + 4)) / 2,
)


@bpkit.hookimpl
def bpkit_layers():
    """What this plugin brings."""
    return [Squareplus.SPEC]
