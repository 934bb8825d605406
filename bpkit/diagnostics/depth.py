"""Profiles over depth: how a figure changes from the input to the output, and how surely.

Three profiles tell how the signal fares on its way forward, and the error δ on its way back:

*Elasticity* ‖∂L/∂W‖·‖W‖ of each layer's matrices: how much the loss moves when the layer is scaled. It does
not depend on how wide the layers are, which the bare norm does: Σ W·∂L/∂W is the same for every layer
of a bias-free ReLU network (Euler's identity for functions homogeneous in each layer).

*Bias gradient*: ∂L/∂b = Σ δ over the batch, so its RMS is δ itself. It shows what elasticity, by that
same identity, cannot: signals that shrink going forward and δ that shrinks going back.

*Signal*: the size of what a layer is fed; where no forward was seen, from the quotient of the two gradients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import inf, isfinite, log10, sqrt
from statistics import median

from bpkit.diagnostics.instruments import Activations, GradientNorm, GradientRate, WeightNorm
from bpkit.diagnostics.sample import Sample, norm

LAYERS = 4  # fewer say more about what kind of layers they are than about depth
POINTS = 64  # layers a trend is taken over; deeper profiles are thinned evenly

# A bias whose gradient is this far below its own weight's is followed by a normalisation that takes
# it out again (a convolution before BatchNorm): its gradient is rounding error.
_BIAS_COUNTS = 1e-2


@dataclass(frozen=True)
class Trend:
    """A straight line through log10 of a profile.

    Attributes:
        profile: what it goes through: layers from the input to the output, zeros left out.
        decades: change from the first layer to the last along the line; positive if it falls
            towards the input.
        agreement: share of pairs of layers that change in the line's direction.
    """

    profile: Mapping[str, float]
    decades: float
    agreement: float


def elasticities(sample: Sample) -> dict[str, float]:
    """‖∂L/∂W‖·‖W‖ by layer, over its matrices."""
    gradients, weights = sample[GradientNorm], sample[WeightNorm]
    profile = {}
    for layer, indices in sample.layers.items():
        products = [
            gradient * weight
            for index in indices
            if sample.network.parameters[index].matrix
            and (gradient := gradients[index]) is not None
            and (weight := weights[index]) is not None
        ]
        if products:
            profile[layer] = norm(products)
    return profile


def bias_gradients(sample: Sample) -> dict[str, float]:
    """RMS of ∂L/∂b by layer, where the bias belongs to a matrix and does something."""
    gradients, infos = sample[GradientNorm], sample.network.parameters
    profile = {}
    for layer, indices in sample.layers.items():
        rms: dict[bool, list[float]] = {True: [], False: []}
        for index in indices:
            gradient = gradients[index]
            if gradient is not None and infos[index].numel:
                rms[infos[index].matrix].append(gradient / sqrt(infos[index].numel))
        if rms[True] and rms[False] and max(rms[False]) >= _BIAS_COUNTS * max(rms[True]):
            profile[layer] = max(rms[False])
    return profile


def signals(sample: Sample) -> dict[str, float]:
    """Size of each layer's input, an estimate: ‖∂L/∂W‖ ÷ (‖∂L/∂b‖·√fan in).

    For one case ∂L/∂W = δ aᵀ and ∂L/∂b = δ, so the quotient is the RMS of a. Over a batch δ cancels more
    in ∂L/∂b: the estimate is too large then, by much for a bias that a normalisation takes out.
    """
    gradients, infos = sample[GradientNorm], sample.network.parameters
    profile = {}
    for layer, indices in sample.layers.items():
        known = [(infos[index], value) for index in indices if (value := gradients[index])]
        biases = [value for info, value in known if not info.matrix]
        inputs = [value / sqrt(info.numel / info.shape[0]) for info, value in known if info.matrix]
        if biases and inputs:
            profile[layer] = min(inputs) / max(biases)
    return profile


def measured_signals(sample: Sample) -> dict[str, float]:
    """Root mean square of what each layer with a matrix is fed, as its forward had it, in that order."""
    matrices = {info.layer for info in sample.network.parameters if info.matrix}
    sizes = sample.by_module(Activations, "input")
    return {layer: size for layer, size in sizes.items() if layer in matrices and 0 < size < inf}


def moves(sample: Sample) -> dict[str, float]:
    """The update that the gradient amounts to, relative to the layer: rate·‖∂L/∂W‖ ÷ ‖W‖, by layer.

    Only where the update is the gradient times a rate. A zero-initialised matrix counts as one with
    rows of unit length, the usual initial size (LeCun et al. 1998), so that its first step is no leap.
    """
    gradients, weights, rates = sample[GradientNorm], sample[WeightNorm], sample[GradientRate]
    found = {}
    for layer, indices in sample.layers.items():
        ratios = [
            rate * gradient / max(weight, sqrt(sample.network.parameters[index].shape[0]))
            for index in indices
            if sample.network.parameters[index].matrix
            and (gradient := gradients[index]) is not None
            and (weight := weights[index]) is not None
            and (rate := rates[index]) is not None
        ]
        if ratios:
            found[layer] = max(ratios)
    return found


def typical(profiles: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Median by layer over several samples; a layer must be in all of them."""
    return {
        layer: median(profile[layer] for profile in profiles)
        for layer in profiles[-1]
        if all(layer in profile for profile in profiles)
    }


def trend(profile: Mapping[str, float]) -> Trend | None:
    """The Theil-Sen line, which a quarter of stray layers does not move; None for too few layers.

    Zeros are left out: a layer without any signal is dead, which is another matter than decay.
    """
    layers = [layer for layer, value in profile.items() if value > 0 and isfinite(value)]
    if len(layers) < LAYERS:
        return None
    stride = -(-len(layers) // POINTS)
    points = [(place, log10(profile[layers[place]])) for place in range(0, len(layers), stride)]
    slopes = [(b - a) / (j - i) for (i, a), (j, b) in combinations(points, 2)]
    slope = median(slopes)
    agreement = sum(each * slope > 0 for each in slopes) / len(slopes)
    return Trend({layer: profile[layer] for layer in layers}, slope * (len(layers) - 1), agreement)
