"""The gradient against depth, as text for a terminal."""

from __future__ import annotations

from bpkit.core.bars import bars
from bpkit.diagnostics.instruments import GradientNorm
from bpkit.diagnostics.sample import Sample


def gradient_profile(sample: Sample) -> str:
    """Gradient norm by layer, input first, as bars on a log scale: at most 80 columns and 40 layers.

    Args:
        sample: as `watcher.sample`.

    Returns:
        Lines of a caption and one bar a layer; of more layers than fit, every n-th, which it says.
    """
    norms = [*sample.by_layer(GradientNorm).items()]
    if not norms:
        return f"no gradients at step {sample.step}"
    return bars(norms, f"gradient norm by layer at step {sample.step}, input first")
