"""What `bpkit bench layers` measures each layer on: inputs of about n elements, and how it is built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

SMALL, LARGE = 1 << 13, 1 << 20


@dataclass(frozen=True)
class Case:
    """How to build a layer and its inputs with about `n` elements."""

    inputs: Callable[[int], tuple[Tensor, ...]]
    args: Callable[[int], tuple[Any, ...]] = lambda n: ()


def _floats(*shape: int) -> Tensor:
    return torch.randn(*shape, requires_grad=True)


def _matrix(n: int) -> tuple[Tensor, ...]:
    return (_floats(n // _width(n), _width(n)),)


def _width(n: int) -> int:
    return 128 if n < LARGE else 1024


def _images(n: int) -> tuple[Tensor, ...]:
    return (_floats(n // (32 * 16 * 16), 32, 16, 16) if n < LARGE else _floats(n // (1 << 17), 32, 64, 64),)


def _sequences(n: int) -> tuple[Tensor, ...]:
    return (_floats(16, n // (16 * 32), 32) if n < LARGE else _floats(64, n // (64 * 256), 256),)


def _probabilities(n: int) -> tuple[Tensor, ...]:
    (logits,) = _matrix(n)
    return logits.detach().sigmoid().requires_grad_(), torch.rand(logits.shape)


def _classes(n: int) -> tuple[Tensor, ...]:
    (logits,) = _matrix(n)
    return logits, torch.randint(logits.shape[1], (len(logits),))


def _pair(n: int) -> tuple[Tensor, ...]:
    (predicted,) = _matrix(n)
    return predicted, torch.rand(predicted.shape)


def _labelled(n: int) -> tuple[Tensor, ...]:
    scores, other = _pair(n)
    return scores, (other - 0.5).sign()


def _ranked(n: int) -> tuple[Tensor, ...]:
    return (*_matrix(n), *_labelled(n))


def _sampled(n: int) -> tuple[Tensor, ...]:
    predicted, sample = _pair(n)
    return predicted, sample, torch.rand(sample.shape) + 0.1


def _two(n: int) -> tuple[Tensor, ...]:
    return (*_matrix(n), *_matrix(n))


def _three(n: int) -> tuple[Tensor, ...]:
    return (*_two(n), *_matrix(n))


def _similar(n: int) -> tuple[Tensor, ...]:
    rows = n // _width(n)
    return (*_two(n), torch.randint(2, (rows,)) * 2 - 1)


def _label_lists(n: int) -> tuple[Tensor, ...]:
    (scores,) = _matrix(n)
    labels = torch.full(scores.shape, -1)
    labels[:, :4] = torch.randint(scores.shape[1], (len(scores), 4))
    return scores, labels


def _alignments(n: int) -> tuple[Tensor, ...]:
    steps, batch, characters = (32, 8, 32) if n < LARGE else (128, 64, 128)
    log_probs = torch.randn(steps, batch, characters).log_softmax(2).requires_grad_()
    labels = torch.randint(1, characters, (batch, steps // 4))
    return log_probs, labels, torch.full((batch,), steps), torch.full((batch,), steps // 4)


def _vocabulary(n: int) -> tuple[Tensor, ...]:
    features, classes = (64, 256) if n < LARGE else (256, 4096)
    return _floats(n // features, features), torch.randint(classes, (n // features,))


def _recurrent(n: int) -> tuple[int, int]:
    return (32, 64) if n < LARGE else (256, 256)


def _self_attention(n: int) -> tuple[Tensor, ...]:
    (sequences,) = _sequences(n)
    return sequences, sequences, sequences


def _encoded(n: int) -> tuple[Tensor, ...]:
    return *_sequences(n), *_sequences(n)


def _transformer(n: int) -> tuple[Any, ...]:
    return (32, 2, 64) if n < LARGE else (256, 8, 512)


def _signals(n: int) -> tuple[Tensor, ...]:
    return (_floats(n // (32 * 64), 32, 64) if n < LARGE else _floats(n // (1 << 15), 32, 1024),)


def _volumes(n: int) -> tuple[Tensor, ...]:
    return (_floats(n // (8 * 8**3), 8, 8, 8, 8) if n < LARGE else _floats(n // (1 << 17), 32, 16, 16, 16),)


def _depth(n: int) -> int:
    return 8 if n < LARGE else 32


def _always(*args: Any) -> Callable[[int], tuple[Any, ...]]:
    return lambda n: args


def _pooled(axes: int) -> Callable[[int], tuple[Tensor, ...]]:
    pool = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[axes - 1](2, return_indices=True)

    def inputs(n: int) -> tuple[Tensor, ...]:
        values, positions = pool(BY_AXES[f"{axes}d"].inputs(n << axes)[0])
        return values.detach().requires_grad_(), positions

    return inputs


# By the number of axes in its name; what an elementwise layer is measured on serves all the others.
BY_AXES = {"1d": Case(_signals), "2d": Case(_images), "3d": Case(_volumes)}
DEFAULT = Case(_matrix)
CASES: dict[str, Case] = {
    "Linear": Case(_matrix, lambda n: (_width(n), _width(n))),
    "Bilinear": Case(lambda n: (_floats(n // 64, 64), _floats(n // 64, 64)), lambda n: (64, 64, 64)),
    **{
        f"{kind}{axes}d": Case(BY_AXES[f"{axes}d"].inputs, lambda n: (32, 32, 3, 1, 1))
        for kind in ("Conv", "ConvTranspose")
        for axes in (1, 2)
    },
    "Conv3d": Case(_volumes, lambda n: (_depth(n), _depth(n), 3, 1, 1)),
    "ConvTranspose3d": Case(_volumes, lambda n: (_depth(n), _depth(n), 3, 1, 1)),
    "Unfold": Case(_images, lambda n: (3, 1, 1)),
    "Fold": Case(lambda n: (_floats(-(-n // (64 * 256)), 64, 256),), lambda n: (32, 2, 1, 0, 2)),
    **{
        f"{kind}Pool{axes}d": Case(BY_AXES[f"{axes}d"].inputs, _always(*args))
        for kind, args in (
            *(("Max", (2,)), ("Avg", (2,)), ("LP", (2, 2))),
            *(("AdaptiveAvg", (8,)), ("AdaptiveMax", (8,)), ("FractionalMax", (2, 5))),
        )
        for axes in (1, 2, 3)
    },
    **{f"MaxUnpool{axes}d": Case(_pooled(axes), lambda n: (2,)) for axes in (1, 2, 3)},
    "Upsample": Case(_images, lambda n: (None, 2, "bilinear")),
    "UpsamplingNearest2d": Case(_images, lambda n: (None, 2)),
    "UpsamplingBilinear2d": Case(_images, lambda n: (None, 2)),
    "BatchNorm1d": Case(_matrix, lambda n: (_width(n),)),
    "BatchNorm2d": Case(_images, lambda n: (32,)),
    "BatchNorm3d": Case(_volumes, lambda n: (8 if n < LARGE else 32,)),
    "SyncBatchNorm": Case(_images, lambda n: (32,)),
    "InstanceNorm1d": Case(_signals, lambda n: (32,)),
    "InstanceNorm2d": Case(_images, lambda n: (32,)),
    "InstanceNorm3d": Case(_volumes, lambda n: (8 if n < LARGE else 32,)),
    "GroupNorm": Case(_images, lambda n: (8, 32)),
    "LocalResponseNorm": Case(_images, lambda n: (5,)),
    "CrossMapLRN2d": Case(_images, lambda n: (5,)),
    "LayerNorm": Case(_matrix, lambda n: (_width(n),)),
    "RMSNorm": Case(_matrix, lambda n: (_width(n),)),
    "Embedding": Case(lambda n: (torch.randint(1000, (n // 64,)),), lambda n: (1000, 64)),
    "EmbeddingBag": Case(lambda n: (torch.randint(1000, (n // 512, 8)),), lambda n: (1000, 64)),
    "Softmax": Case(_matrix, lambda n: (-1,)),
    "LogSoftmax": Case(_matrix, lambda n: (-1,)),
    "Softmin": Case(_matrix, lambda n: (-1,)),
    "Softmax2d": Case(_images),
    "Threshold": Case(_matrix, lambda n: (0.1, 20.0)),
    "Unflatten": Case(_matrix, lambda n: (1, (2, -1))),
    "PixelShuffle": Case(_images, lambda n: (2,)),
    "PixelUnshuffle": Case(_images, lambda n: (2,)),
    "ChannelShuffle": Case(_images, lambda n: (4,)),
    **{f"ConstantPad{axes}d": Case(BY_AXES[f"{axes}d"].inputs, lambda n: (1, 1.0)) for axes in (1, 2, 3)},
    **{
        f"{kind}Pad{axes}d": Case(BY_AXES[f"{axes}d"].inputs, lambda n: (1,))
        for kind in ("Zero", "Reflection", "Replication", "Circular")
        for axes in (1, 2, 3)
    },
    "RNN": Case(_sequences, _recurrent),
    "LSTM": Case(_sequences, _recurrent),
    "GRU": Case(_sequences, _recurrent),
    "RNNCell": Case(_matrix, lambda n: (_width(n), _width(n))),
    "LSTMCell": Case(_matrix, lambda n: (_width(n), _width(n))),
    "GRUCell": Case(_matrix, lambda n: (_width(n), _width(n))),
    "MultiheadAttention": Case(_self_attention, lambda n: _transformer(n)[:2]),
    "NonDynamicallyQuantizableLinear": Case(_matrix, lambda n: (_width(n), _width(n))),
    "TransformerEncoderLayer": Case(_sequences, _transformer),
    "TransformerDecoderLayer": Case(_encoded, _transformer),
    "TransformerEncoder": Case(_sequences, lambda n: (nn.TransformerEncoderLayer(*_transformer(n)), 2)),
    "TransformerDecoder": Case(_encoded, lambda n: (nn.TransformerDecoderLayer(*_transformer(n)), 2)),
    "Transformer": Case(_encoded, lambda n: (*_transformer(n)[:2], 1, 1, _transformer(n)[2])),
    "mse": Case(_pair),
    "l1": Case(_pair),
    "smooth_l1": Case(_pair),
    "huber": Case(_pair),
    "soft_margin": Case(_labelled),
    "hinge_embedding": Case(_labelled),
    "margin_ranking": Case(_ranked),
    "poisson_nll": Case(_pair),
    "gaussian_nll": Case(_sampled),
    "kl_div": Case(_pair),
    "cross_entropy": Case(_classes),
    "linear_cross_entropy": Case(_vocabulary, lambda n: (64, 256) if n < LARGE else (256, 4096)),
    "nll": Case(_classes),
    "nll2d": Case(_classes),
    "multi_margin": Case(_classes),
    "multilabel_margin": Case(_label_lists),
    "multilabel_soft_margin": Case(_pair),
    "cosine_embedding": Case(_similar),
    "triplet_margin": Case(_three),
    "triplet_margin_with_distance": Case(_three),
    "ctc": Case(_alignments),
    "CosineSimilarity": Case(_two),
    "PairwiseDistance": Case(_two),
    "AdaptiveLogSoftmaxWithLoss": Case(_classes, lambda n: (_width(n), _width(n), [32, 96])),
    "bce": Case(_probabilities),
    "bce_with_logits": Case(_pair),
}


def case_of(name: str) -> Case:
    """The case of a layer by the name of its spec."""
    return CASES.get(name) or BY_AXES.get(name[-2:], DEFAULT)
