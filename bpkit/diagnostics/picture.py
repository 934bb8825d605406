"""The gradient against depth, as text for a terminal."""

from __future__ import annotations

from math import isfinite, log10

from bpkit.diagnostics.instruments import GradientNorm
from bpkit.diagnostics.sample import Sample

WIDTH = 80
NAME = 24
ROWS = 40
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def gradient_profile(sample: Sample) -> str:
    """Gradient norm by layer, input first, as bars on a log scale: at most 80 columns and 40 layers.

    Args:
        sample: as `watcher.sample`.

    Returns:
        Lines of a caption and one bar a layer; of more layers than fit, every n-th, which it says.
    """
    norms = list(sample.by_layer(GradientNorm).items())
    if not norms:
        return f"no gradients at step {sample.step}"
    stride = -(-len(norms) // ROWS)
    shown = norms[::stride]
    logs = [log10(value) for _, value in shown if value > 0 and isfinite(value)]
    low, high = min(logs, default=0.0), max(logs, default=0.0)
    low = min(low, high - 1) - 0.1 * max(high - low, 1)  # a decade at least, and a stub for the smallest
    names = min(NAME, max(len(name) for name, _ in shown))
    bars = WIDTH - names - 11
    thinned = "" if stride == 1 else f", every {stride}th of {len(norms)} layers"
    lines = [f"gradient norm by layer at step {sample.step}, input first, log scale{thinned}"]
    for name, value in shown:
        label = name if len(name) <= names else "…" + name[1 - names :]
        share = (log10(value) - low) / (high - low) if value > 0 and isfinite(value) else 0.0
        lines.append(f"{label:<{names}} {value:>8.1e} {_bar(share * bars)}".rstrip())
    return "\n".join(lines)


def _bar(length: float) -> str:
    """A bar of this many columns, to an eighth of one."""
    eighths = round(length * 8)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
