"""Figures against depth, as text for a terminal. Needs no torch, so that a reader of logs can draw too."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, log10

WIDTH = 80
NAME = 24
ROWS = 40
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def bars(figures: Sequence[tuple[str, float]], caption: str) -> str:
    """Named figures as bars on a log scale, in their order: at most 80 columns and 40 rows.

    A figure that is zero, negative or not finite is written, and has no bar.

    Args:
        figures: a name and its figure each, at least one.
        caption: the first line, to which "log scale" is added, and what was left out.

    Returns:
        Lines of a caption and one bar a figure; of more than fit, every n-th, which it says.
    """
    stride = -(-len(figures) // ROWS)
    shown = figures[::stride]
    logs = [log10(value) for _, value in shown if value > 0 and isfinite(value)]
    low, high = min(logs, default=0.0), max(logs, default=0.0)
    low = min(low, high - 1) - 0.1 * max(high - low, 1)  # a decade at least, and a stub for the smallest
    names = min(NAME, max(len(name) for name, _ in shown))
    longest = WIDTH - names - 11
    thinned = "" if stride == 1 else f", every {_ordinal(stride)} of {len(figures)} layers"
    lines = [f"{caption}, log scale{thinned}"]
    for name, value in shown:
        share = (log10(value) - low) / (high - low) if value > 0 and isfinite(value) else 0.0
        lines.append(f"{shortened(name, names):<{names}} {value:>8.1e} {_bar(share * longest)}".rstrip())
    return "\n".join(lines)


def shortened(name: str, width: int) -> str:
    """A qualified name within a width: `encoder.layers.3.attention` is `e.l.3.attention`.

    Parents give way first, outermost first, to their initials, numbers never; then the beginning.
    """
    parts = name.split(".")
    for index, part in enumerate(parts[:-1]):
        if len(".".join(parts)) <= width:
            break
        parts[index] = part if part.isdigit() else part[:1]
    short = ".".join(parts)
    return short if len(short) <= width else "…" + short[len(short) + 1 - width :]


def _bar(length: float) -> str:
    """A bar of this many columns, to an eighth of one."""
    eighths = round(length * 8)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def _ordinal(number: int) -> str:
    suffixes = {1: "st", 2: "nd", 3: "rd"}
    return f"{number}{'th' if 10 < number % 100 < 14 else suffixes.get(number % 10, 'th')}"
