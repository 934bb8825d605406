"""What to try: sentences that name this model's layers, activations and initial weights."""

from __future__ import annotations

from collections import Counter
from math import sqrt

from bpkit.diagnostics.instruments import GradientNorm, WeightNorm
from bpkit.diagnostics.sample import Sample

# Activations whose slope is below 1 nearly everywhere, with the most that it can be.
_SQUASHING = {"Sigmoid": "1/4", "LogSigmoid": "1", "Tanh": "1", "Softsign": "1", "Hardsigmoid": "1/6"}
_RECURRENT = frozenset({"RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"})


def against_vanishing(sample: Sample, layers: tuple[str, ...]) -> str:
    """ReLU and He initialisation for squashing activations, another scale for small weights."""
    kinds = Counter(sample.network.between(layers))
    squashing = [kind for kind in kinds if kind in _SQUASHING]
    span = _span(layers)
    if squashing:
        kind = max(squashing, key=kinds.__getitem__)
        return (
            f"{span} pass through {kinds[kind]} {kind}, whose slope is at most {_SQUASHING[kind]}: use ReLU "
            "with torch.nn.init.kaiming_normal_(weight, nonlinearity='relu'), or put normalisation "
            "(BatchNorm, LayerNorm) or residual connections between them"
        )
    scale = _against_he(sample, layers)
    if scale is not None and scale < 0.8:
        return (
            f"the weights of {span} are {scale:.2g} of He's size, so every layer shrinks the signal: "
            "initialise with torch.nn.init.kaiming_normal_(weight, nonlinearity='relu') and zero biases, "
            "or put normalisation (BatchNorm, LayerNorm) between them"
        )
    return (
        f"every layer of {span} shrinks the gradient: put residual connections or normalisation (BatchNorm, "
        "LayerNorm) there, and in place of an activation that squashes (sigmoid, tanh) ReLU with "
        "torch.nn.init.kaiming_normal_"
    )


def against_exploding(sample: Sample, layers: tuple[str, ...]) -> str:
    """Orthogonal weights for a recurrent layer, another scale for large ones, a smaller rate, a clip.

    `sample` is the run's first, whose weights are as they were initialised.
    """
    classes = dict(sample.network.modules)
    recurrent = [layer for layer in layers if classes.get(layer) in _RECURRENT]
    clip = "torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)"
    if recurrent:
        return (
            f"'{recurrent[0]}' multiplies the gradient by one matrix at every time step. Clip it before the "
            f"optimizer's step ({clip}), and start its weight_hh with torch.nn.init.orthogonal_"
        )
    scale = _against_he(sample, layers)
    if scale is not None and scale > 1.4:
        return (
            f"the weights of {_span(layers)} are {scale:.2g} times He's size and amplify the signal: "
            "initialise with torch.nn.init.kaiming_normal_, or put normalisation (BatchNorm, LayerNorm) "
            f"between them. Clipping the gradient ({clip}) limits the harm"
        )
    return f"lower the learning rate tenfold or warm it up, and clip the gradient before the step ({clip})"


def _span(layers: tuple[str, ...]) -> str:
    """From the first to the last, in a few words."""
    if len(layers) < 2:
        return f"'{layers[0]}'" if layers else "the model"
    return f"'{layers[0]}' to '{layers[-1]}'"


def _against_he(sample: Sample, layers: tuple[str, ...]) -> float | None:
    """Median over the layers' matrices of their root mean square, over He's √(2 / fan in)."""
    ratios = []
    for info, weight, gradient in zip(
        sample.network.parameters, sample[WeightNorm], sample[GradientNorm], strict=True
    ):
        if info.layer in layers and info.matrix and weight is not None and gradient is not None:
            fan_in = info.numel / info.shape[0]
            ratios.append(weight / sqrt(info.numel) / sqrt(2 / fan_in))
    return sorted(ratios)[len(ratios) // 2] if ratios else None
