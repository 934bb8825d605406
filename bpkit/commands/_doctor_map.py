"""The heat map layer × step as SVG: its cells a PNG made here, its words SVG text."""

from __future__ import annotations

import struct
import zlib
from base64 import b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor

import numpy as np
from numpy.typing import NDArray

from bpkit.core.bars import shortened
from bpkit.tensorboard.reader import Array
from bpkit.tensorboard.record import ABSENT

WIDTH, LEFT, TOP, BOTTOM, LEGEND = 960, 210, 24, 26, 44
ROWS = 400  # of more layers, neighbours share one
DECADES = 16  # below the largest; less is drawn as the least
VIRIDIS = ["440154", "482878", "3e4a89", "31688e", "26828e", "1f9e89", "35b779", "6dcd59", "b4de2c", "fde725"]
BAD = "e6194b"
_BAD, _BLANK = 254, 255  # places in the palette; 0 to 253 are the scale


@dataclass(frozen=True)
class Cells:
    """Values by row and sample, and what the rows and samples are called.

    Attributes:
        steps: of each column.
        names: of each row's layers.
        values: [rows × columns].
    """

    steps: Sequence[int]
    names: Sequence[str]
    values: Array

    @property
    def share(self) -> int:
        """How many neighbouring layers have to share a row."""
        return -(-len(self.names) // ROWS)

    def gathered(self) -> Cells:
        """At most `ROWS` rows, by their first layers: the largest of each, what is not finite above all."""
        starts = range(0, len(self.names), self.share)
        # The maximum of floats passes NaN on, and infinity is one; ABSENT is the lowest.
        values = np.maximum.reduceat(self.values, starts, axis=0)
        return Cells(self.steps, [self.names[start] for start in starts], values)


def heat_map(cells: Cells, marks: Iterable[tuple[int, str]], label: str) -> str:
    """The map with its scale and legend.

    Args:
        cells: positive values, `ABSENT` where there is none.
        marks: steps, and what is written above each.
        label: what is shown, for a reader that hears the page.
    """
    cells = cells.gathered()
    rows, columns = cells.values.shape
    tall = min(max(520 / rows, 1.5), 22)
    height, wide = tall * rows, (WIDTH - LEFT) / columns
    low, high = _range(cells.values)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {TOP + height + BOTTOM + LEGEND:.0f}" role="img"',
        f' aria-label="{escape(label)}">',
        _image(_colours(cells.values, low, high), LEFT, TOP, WIDTH - LEFT, height),
        f'<rect class="frame" x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT}" height="{height:.1f}"/>',
    ]
    for row in range(0, rows, ceil(15 / tall)):
        name = cells.names[row]
        parts.append(
            f'<text x="{LEFT - 8}" y="{TOP + (row + 0.5) * tall + 4:.1f}" text-anchor="end">'
            f"{escape(shortened(name, 32))}<title>{escape(name)}</title></text>"
        )
    for column in range(0, columns, ceil(70 / wide)):
        x = LEFT + (column + 0.5) * wide
        parts.append(
            f'<text x="{x:.1f}" y="{TOP + height + 16:.1f}" text-anchor="middle">'
            f"{cells.steps[column]:,}</text>"
        )
    parts.append(f'<text x="{LEFT - 8}" y="{TOP + height + 16:.1f}" text-anchor="end">step</text>')
    parts += _marks(cells.steps, marks, wide)
    parts += _legend(TOP + height + BOTTOM + 12, low, high, zeros=bool((cells.values == 0).any()))
    return "".join([*parts, "</svg>"])


def _marks(steps: Sequence[int], marks: Iterable[tuple[int, str]], wide: float) -> list[str]:
    """What is written above the map, at the first sample of its step or later; one place holds several."""
    places: dict[int, list[str]] = {}
    for step, text in sorted(marks):
        column = min(int(np.searchsorted(steps, step)), len(steps) - 1)
        near = next((each for each in places if abs(each - column) * wide < 28), column)
        places.setdefault(near, []).append(text)
    return [
        f'<text class="mark" x="{LEFT + (column + 0.5) * wide:.1f}" y="{TOP - 7}" text-anchor="middle">'
        f"{escape(','.join(texts))}▾</text>"
        for column, texts in places.items()
    ]


def _legend(y: float, low: float, high: float, *, zeros: bool) -> list[str]:
    """The scale with its decades, and what stands outside of it."""
    wide = 300
    parts = [_image(np.arange(_BAD, dtype=np.uint8)[None], LEFT, y, wide, 10)]
    whole = range(ceil(low), floor(high) + 1)
    for decade in whole[:: ceil(len(whole) / 6) or 1]:
        x = LEFT + (decade - low) / (high - low) * wide
        parts.append(f'<text x="{x:.1f}" y="{y + 23:.1f}" text-anchor="middle">1e{decade}</text>')
    x = LEFT + wide + 40
    swatches = [(f'style="fill:#{BAD}"', "NaN or infinite"), ('class="frame"', "not measured")]
    for style, text in (
        *swatches,
        *([(f'style="fill:#{VIRIDIS[0]}"', "zero, as the least")] if zeros else []),
    ):
        parts.append(
            f'<rect {style} x="{x}" y="{y:.1f}" width="14" height="10"/>'
            f'<text x="{x + 20}" y="{y + 9:.1f}">{text}</text>'
        )
        x += 140
    return parts


def _range(values: Array) -> tuple[float, float]:
    """Logarithms that the scale begins and ends with: a decade at least, `DECADES` at most."""
    good = values[np.isfinite(values) & (values > 0)]
    if not good.size:
        return -1.0, 0.0
    low, high = float(np.log10(good.min())), float(np.log10(good.max()))
    return max(min(low, high - 1), high - DECADES), high


def _colours(values: Array, low: float, high: float) -> NDArray[np.uint8]:
    """The place of each value in the palette; zero has that of the least."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        share = (np.log10(values.astype(np.float64)) - low) / (high - low)
    share[~np.isfinite(share)] = 0
    places = (share.clip(0, 1) * (_BAD - 1)).round().astype(np.uint8)
    places[~np.isfinite(values)] = _BAD
    places[values == np.float32(ABSENT)] = _BLANK
    return places


def _image(places: NDArray[np.uint8], x: float, y: float, width: float, height: float) -> str:
    """Places in the palette, each a pixel, drawn as large as said."""
    data = b64encode(_png(places)).decode()
    return (
        f'<image x="{x}" y="{y:.1f}" width="{width}" height="{height:.1f}" preserveAspectRatio="none" '
        f'style="image-rendering:pixelated" href="data:image/png;base64,{data}"/>'
    )


def _png(places: NDArray[np.uint8]) -> bytes:
    """A picture with one pixel a cell, eight bits of palette, the last place of it transparent."""
    anchors = np.array([list(bytes.fromhex(colour)) for colour in VIRIDIS], dtype=float)
    at = np.linspace(0, len(VIRIDIS) - 1, _BAD)
    scale = np.stack([np.interp(at, np.arange(len(VIRIDIS)), anchors[:, channel]) for channel in range(3)], 1)
    palette = scale.round().astype(np.uint8).tobytes() + bytes.fromhex(BAD) + bytes(3)
    rows, columns = places.shape
    lines = b"".join(b"\0" + row.tobytes() for row in places)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        _chunk(*each)
        for each in (
            (b"IHDR", struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0)),
            (b"PLTE", palette),
            (b"tRNS", bytes([255] * _BLANK + [0])),
            (b"IDAT", zlib.compress(lines, 9)),
            (b"IEND", b""),
        )
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
