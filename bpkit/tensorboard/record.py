"""What a watch writes into a run's event file, and what the tab and `bpkit doctor` read there.

Few tags, whatever the size of the model, all for the TensorBoard plugin `bpkit`:

`bpkit/layers`      float32 [layers, statistics], one a sample. Its metadata's content is a `Layout` as JSON.
                    A model whose layers change goes on under `bpkit/layers/2`, `/3`, …, each with its layout.
`bpkit/histograms`  float32 [layers, bins], now and then: how |∂L/∂W| of each layer is distributed, as counts
                    in bins of half a decade (`EDGES`); likewise continued under `/2`, ….
`bpkit/findings`    text: `Verdicts` as JSON, written whenever one changes and at the end; the last has all.

TensorBoard keeps a random hundred tensors of a tag, and always the last: hence one tensor a sample, and
verdicts that repeat all earlier ones. A value that was not measured is `ABSENT`, so that NaN and infinity
are free to say that they were.

This module imports neither torch nor TensorBoard.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

PLUGIN = "bpkit"
LAYERS, HISTOGRAMS, FINDINGS = "bpkit/layers", "bpkit/histograms", "bpkit/findings"
VERSION = 1

ABSENT = -3.4028234663852886e38  # the lowest float32: no statistic has it

# Bins of log10 |value|: below the first edge, between two, above the last; zeros and non-finite ones apart.
EDGES = tuple(each / 2 for each in range(-24, 9))
BINS = (
    "zero",
    f"< 1e{EDGES[0]:g}",
    *(f"1e{edge:g}" for edge in EDGES[:-1]),
    f">= 1e{EDGES[-1]:g}",
    "non-finite",
)


@dataclass(frozen=True)
class Layout:
    """What the rows and columns of a tensor are.

    Attributes:
        layers: qualified module names, in the order of the forward. Untrusted text.
        classes: class name of each layer, `Linear`.
        columns: statistics (`"gradient norm"`, `"gain"`, …) or `BINS`.
        model: class name of the model.
    """

    layers: tuple[str, ...]
    classes: tuple[str, ...]
    columns: tuple[str, ...]
    model: str = ""

    def to_json(self) -> str:
        return json.dumps({"version": VERSION, **asdict(self)})

    @staticmethod
    def from_json(text: str | bytes) -> Layout:
        """Raises ValueError for what no `Layout` wrote, and for that of a later version."""
        held = _object(text)
        try:
            return Layout(
                tuple(map(str, held["layers"])),
                tuple(map(str, held["classes"])),
                tuple(map(str, held["columns"])),
                str(held.get("model", "")),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"no layout of bpkit's: {error}") from error


@dataclass(frozen=True)
class Verdicts:
    """All findings of a run as of a step, and what the watch has cost so far.

    Attributes:
        step: the last step that was seen.
        findings: mappings with `kind`, `severity`, `layers`, `step`, `last_step`, `evidence`, `advice`.
        seconds: time that watching took.
        share: the same as a part of the run's time.
        samples: steps that were sampled.
        finished: the watch was closed.
        left_out: diagnostics that did not look any more, and why.
    """

    step: int
    findings: Sequence[Mapping[str, Any]] = ()
    seconds: float = 0.0
    share: float = 0.0
    samples: int = 0
    finished: bool = False
    left_out: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """JSON as JavaScript reads it: what is not finite is the string `NaN`, `Infinity`, `-Infinity`."""
        return json.dumps({"version": VERSION, **_finite(asdict(self))}, allow_nan=False)

    @staticmethod
    def from_json(text: str | bytes) -> Verdicts:
        """Raises ValueError for what no `Verdicts` wrote, and for those of a later version."""
        held = _object(text)
        held.pop("version", None)
        try:
            verdicts = Verdicts(**held)
        except TypeError as error:
            raise ValueError(f"no verdicts of bpkit's: {error}") from error
        return verdicts


def _object(text: str | bytes) -> dict[str, Any]:
    held = json.loads(text)
    if not isinstance(held, dict):
        raise ValueError("not a JSON object")
    version = held.get("version")
    if not isinstance(version, int) or version > VERSION:
        raise ValueError(f"written by a later bpkit (format {version}, this one reads {VERSION})")
    return held


def _finite(value: Any) -> Any:
    if isinstance(value, float) and value - value != 0:
        return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return value
