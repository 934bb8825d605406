"""What each case of a batch adds to a weight's gradient, from a layer's input a and its output's error δ.

The gradient is a sum over cases n and, within each, over positions p (time, space, several uses of the layer
in one forward). `c_n`, the case's own part of the sum, is not formed where its norm is to be had for less:

    Linear       c_n = Σ_p δ_np ⊗ a_np       ‖c_n‖² = Σ_pq (δ_np·δ_nq)(a_np·a_nq) where positions are few
    convolution  c_n[o,i,k] = Σ_p δ[n,o,p] x[n,i, s p + d k - a]
    norms        c_n = Σ_p δ_np z_np         z: the input, normalised
    Embedding    c_n[v] = Σ_p [k_np = v] δ_np     ‖c_n‖² = Σ_pq [k_np = k_nq] δ_np·δ_nq
    bias         c_n = Σ_p δ_np

The derivations are those of `bpkit.layers`. BatchNorm's z has the batch's mean and variance; for its own
weight they are constants, so that Σ_n c_n is the gradient here as well. What is *upstream* of a BatchNorm
gets a δ_n to which other cases have contributed: still the n-th part of the gradient's sum, but no gradient
of the n-th loss alone.

Sources: Goodfellow, "Efficient per-example gradient computations", 2015; Dangel, Kunstner & Hennig,
"BackPACK: packing more into backprop", 2020.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bpkit.layers.convolution import weight_gradient

Uses = Sequence[tuple[Tensor, Tensor]]  # a and δ, [cases, ...] each, of every use of the layer in one forward
BLOCK = 1 << 20  # elements that are formed for all cases at once; beyond, case by case


def _same(module: Any, input: Tensor, cases: slice) -> Tensor:
    return input[cases]


@dataclass(frozen=True)
class Formula:
    """How a class of layers takes part.

    Attributes:
        weight: ‖c_n‖² of `weight`, [cases].
        bias: the same of `bias`.
        axes: how many axes an input with a batch has at the least.
        seen: what of the input the formula wants of these cases; given before the layer has run.
    """

    weight: Callable[[Any, Uses], Tensor]
    bias: Callable[[Any, Uses], Tensor]
    axes: Callable[[Any], int]
    seen: Callable[[Any, Tensor, slice], Tensor] = _same


def _linear_weight(module: nn.Linear, uses: Uses) -> Tensor:
    a, delta = _positions([a for a, _ in uses]), _positions([delta for _, delta in uses])
    count, (i, o) = a.shape[1], (a.shape[2], delta.shape[2])
    if count * (i + o) <= i * o:
        return _in_blocks(lambda a, delta: ((a @ a.mT) * (delta @ delta.mT)).sum((1, 2)), count**2, a, delta)
    return _in_blocks(lambda a, delta: (delta.mT @ a).square().sum((1, 2)), i * o, a, delta)


def _embedding_weight(module: nn.Embedding, uses: Uses) -> Tensor:
    index = torch.cat([index.reshape(len(index), -1) for index, _ in uses], 1)
    delta = _positions([delta for _, delta in uses])
    if module.padding_idx is not None:
        delta = delta.masked_fill((index == module.padding_idx)[..., None], 0)

    def squares(index: Tensor, delta: Tensor) -> Tensor:
        return ((delta @ delta.mT) * (index[:, :, None] == index[:, None, :])).sum((1, 2))

    return _in_blocks(squares, index.shape[1] ** 2, index, delta)


def _convolution_weight(module: nn.modules.conv._ConvNd, uses: Uses) -> Tensor:
    padding = module.padding
    if module.padding_mode != "zeros" or isinstance(padding, str):
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        by_hand = module._reversed_padding_repeated_twice
        uses = [(F.pad(a, by_hand, mode=mode), delta) for a, delta in uses]
        padding = (0,) * len(module.kernel_size)
    return _correlations(module, [(delta, a) for a, delta in uses], padding)


def _transposed_weight(module: nn.modules.conv._ConvTransposeNd, uses: Uses) -> Tensor:
    return _correlations(module, uses, module.padding)  # input and δ have changed roles


def _correlations(module: nn.modules.conv._ConvNd, uses: Uses, padding: Any) -> Tensor:
    """‖Σ_uses weight_gradient‖² of each case: by the vendor's kernel, which unfolds nothing."""
    first = uses[0][0]
    weight = first.new_empty(()).expand(module.weight.shape)  # whose values are not read
    settings = (module.stride, padding, module.dilation, module.groups)
    squares = []
    for case in range(first.shape[0]):
        here = slice(case, case + 1)
        parts = [weight_gradient(delta[here], a[here], weight, *settings) for delta, a in uses]
        squares.append(torch.stack(parts).sum(0).square().sum())
    return torch.stack(squares)


def _scale(normalised: Callable[[Any, Tensor], Tensor], axes: Callable[[Any, Tensor], Axes]) -> Any:
    """The weight of a normalisation, which multiplies z along `axes`."""

    def squares(module: Any, uses: Uses) -> Tensor:
        products = [_kept(normalised(module, a) * delta, axes(module, delta)) for a, delta in uses]
        return _norms(torch.stack(products).sum(0))

    return squares


def _shift(axes: Callable[[Any, Tensor], Axes]) -> Any:
    """A bias, which is added along `axes`."""

    def squares(module: Any, uses: Uses) -> Tensor:
        return _norms(torch.stack([_kept(delta, axes(module, delta)) for _, delta in uses]).sum(0))

    return squares


Axes = tuple[int, ...]


def _last(module: Any, delta: Tensor) -> Axes:
    return (delta.dim() - 1,)


def _channel(module: Any, delta: Tensor) -> Axes:
    return (1,)


def _trailing(module: Any, delta: Tensor) -> Axes:
    return tuple(range(delta.dim() - len(module.normalized_shape), delta.dim()))


def _by_batch(module: nn.modules.batchnorm._BatchNorm, input: Tensor, cases: slice) -> Tensor:
    """Z of some cases, by the mean and variance of all of them, or by the running ones."""
    mean, variance = module.running_mean, module.running_var
    if module.training or mean is None or variance is None:
        axes = (0, *range(2, input.dim()))
        variance, mean = torch.var_mean(wide(input), axes, correction=0)
    shape = (1, -1, *[1] * (input.dim() - 2))
    return (wide(input[cases]) - mean.view(shape)) * (variance.view(shape) + module.eps).rsqrt()


def _positions(each: Sequence[Tensor]) -> Tensor:
    """[cases, positions, features] of all uses: their leading axes are positions."""
    return torch.cat([tensor.reshape(tensor.shape[0], -1, tensor.shape[-1]) for tensor in each], 1)


def _in_blocks(squares: Callable[..., Tensor], size: int, *each: Tensor) -> Tensor:
    """All cases at once where that takes `BLOCK` elements at most, else one after the other."""
    if size * each[0].shape[0] <= BLOCK:
        return squares(*each)
    return torch.cat([squares(*case) for case in zip(*(tensor.split(1) for tensor in each), strict=True)])


def _kept(tensor: Tensor, axes: Axes) -> Tensor:
    """Summed over all axes but the first, which is the cases', and `axes`."""
    over = [axis for axis in range(1, tensor.dim()) if axis not in axes]
    return tensor.sum(over) if over else tensor


def _norms(tensor: Tensor) -> Tensor:
    return tensor.flatten(1).square().sum(1)


def wide(tensor: Tensor) -> Tensor:
    """float32 or wider, for squares of half precision overflow; integers as they are."""
    return tensor.float() if tensor.is_floating_point() and tensor.dtype.itemsize < 4 else tensor


def _dimensions(module: Any) -> int:
    return 2 + len(module.kernel_size)


_CONVOLUTION = Formula(_convolution_weight, _shift(_channel), _dimensions)
_TRANSPOSED = Formula(_transposed_weight, _shift(_channel), _dimensions)
_BATCH_NORM = Formula(_scale(lambda _, z: z, _channel), _shift(_channel), lambda _: 2, _by_batch)

FORMULAS: Mapping[type[nn.Module], Formula] = {
    nn.Linear: Formula(_linear_weight, _shift(_last), lambda _: 2),
    nn.Conv1d: _CONVOLUTION,
    nn.Conv2d: _CONVOLUTION,
    nn.Conv3d: _CONVOLUTION,
    nn.ConvTranspose1d: _TRANSPOSED,
    nn.ConvTranspose2d: _TRANSPOSED,
    nn.ConvTranspose3d: _TRANSPOSED,
    nn.BatchNorm1d: _BATCH_NORM,
    nn.BatchNorm2d: _BATCH_NORM,
    nn.BatchNorm3d: _BATCH_NORM,
    nn.LayerNorm: Formula(
        _scale(lambda module, a: F.layer_norm(a, module.normalized_shape, eps=module.eps), _trailing),
        _shift(_trailing),
        lambda module: 1 + len(module.normalized_shape),
    ),
    nn.RMSNorm: Formula(
        _scale(lambda module, a: F.rms_norm(a, module.normalized_shape, eps=module.eps), _trailing),
        _shift(_trailing),
        lambda module: 1 + len(module.normalized_shape),
    ),
    nn.GroupNorm: Formula(
        _scale(lambda module, a: F.group_norm(a, module.num_groups, eps=module.eps), _channel),
        _shift(_channel),
        lambda _: 2,
    ),
    nn.Embedding: Formula(_embedding_weight, _shift(_last), lambda _: 1),
}


def formula(module: nn.Module) -> Formula | None:
    """The formula of a module that computes what its torch class does, with parameters of its own kind.

    None for one that is not in the table, has another forward, makes its weight from something else, or
    counts over the whole batch (`Embedding(scale_grad_by_freq=True)`).
    """
    if not forward_is_torchs(module) or getattr(module, "scale_grad_by_freq", False):
        return None
    if not {name for name, _ in module.named_parameters()} <= {"weight", "bias"}:
        return None
    return next((FORMULAS[cls] for cls in type(module).__mro__ if cls in FORMULAS), None)


def forward_is_torchs(module: nn.Module) -> bool:
    """Whether no one but torch and bpkit has a say in what the module computes."""
    for method in ("forward", "_conv_forward"):
        owner = next((cls for cls in type(module).__mro__ if method in vars(cls)), None)
        theirs = owner is not None and owner.__module__.partition(".")[0] not in ("torch", "bpkit")
        if theirs or method in vars(module):
            return False
    return True
