"""`Source`: the runs that TensorBoard has loaded, each read once and again when it has grown."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tensorboard.data import provider  # type: ignore[import-untyped]

from bpkit.core.errors import BpkitError
from bpkit.core.finding import Finding
from bpkit.tensorboard.history import Array, History, Part, merged
from bpkit.tensorboard.record import BINS, FINDINGS, HISTOGRAMS, LAYERS, PLUGIN, Layout, Verdicts

SAMPLES = 512  # more than a picture shows; TensorBoard keeps a hundred unless it is told otherwise
HELD = 16  # runs kept in memory


@dataclass(frozen=True)
class Entry:
    """A run in the list of runs.

    Attributes:
        name: its name. Untrusted text.
        step: the last one logged.
        written: when, in seconds since the epoch.
        version: another one whenever the run has changed.
        layers: how many the latest layout has.
        model: class name of the model.
        columns: statistics.
        problems: what of its metadata cannot be read.
    """

    name: str
    step: int
    written: float
    version: str
    layers: int
    model: str
    columns: tuple[str, ...]
    problems: tuple[str, ...]


@dataclass
class _Held:
    """A run in memory, and what it was when it was read."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    version: str = ""
    history: History = field(default_factory=History)


class Source:
    """Runs read through TensorBoard's data provider."""

    def __init__(self, data: Any) -> None:
        self._data = data
        self._held: OrderedDict[tuple[str, str], _Held] = OrderedDict()
        self._lock = threading.Lock()  # TensorBoard answers each request on a thread of its own

    def entries(self, context: Any, experiment: str) -> list[Entry]:
        """All runs that hold something of bpkit's, by name."""
        found = self._data.list_tensors(context, experiment_id=experiment, plugin_name=PLUGIN)
        return [_entry(name, tags) for name, tags in sorted(found.items())]

    def history(self, context: Any, experiment: str, run: str) -> History:
        """What a run has logged.

        Raises:
            BpkitError: there is no such run.
        """
        wanted = provider.RunTagFilter(runs=[run])
        asked = {"experiment_id": experiment, "plugin_name": PLUGIN, "run_tag_filter": wanted}
        tags = self._data.list_tensors(context, **asked).get(run)
        if not tags:
            raise BpkitError(f"no run {run!r} that bpkit has watched")
        held = self._hold(experiment, run)
        with held.lock:  # the page asks for several things at once, and one reading serves them all
            version = _version(tags)
            if held.version != version:
                data = self._data.read_tensors(context, downsample=SAMPLES, **asked)
                held.history = _history(tags, data.get(run, {}))
                held.version = version
            return held.history

    def _hold(self, experiment: str, run: str) -> _Held:
        with self._lock:
            held = self._held.setdefault((experiment, run), _Held())
            self._held.move_to_end((experiment, run))
            while len(self._held) > HELD:
                self._held.popitem(last=False)
        return held


def _version(tags: Mapping[str, Any]) -> str:
    return ";".join(
        f"{tag}@{tags[tag].max_step}/{tags[tag].max_wall_time}" for tag in sorted(tags, key=_number)
    )


def _number(tag: str) -> tuple[str, int]:
    """Sorts `bpkit/layers/10` behind `bpkit/layers/9`."""
    name, _, number = tag.rpartition("/")
    return (name, int(number)) if number.isdecimal() else (tag, 1)


def _layouts(tags: Mapping[str, Any], name: str, problems: list[str]) -> Iterator[tuple[str, Layout]]:
    """The tags of that name or continued under it, with their layouts, the earliest first."""
    for tag in sorted(tags, key=_number):
        if _number(tag)[0] == name:
            try:
                yield tag, Layout.from_json(tags[tag].plugin_content)
            except ValueError as error:
                problems.append(f"{tag} is left out: {error}")


def _entry(name: str, tags: Mapping[str, Any]) -> Entry:
    problems: list[str] = []
    layouts = [layout for _, layout in _layouts(tags, LAYERS, problems)]
    latest = layouts[-1] if layouts else Layout((), (), ())
    return Entry(
        name=name,
        step=max(each.max_step for each in tags.values()),
        written=max(each.max_wall_time for each in tags.values()),
        version=_version(tags),
        layers=len(latest.layers),
        model=latest.model,
        columns=tuple(dict.fromkeys(column for layout in layouts for column in layout.columns)),
        problems=tuple(problems),
    )


def _history(tags: Mapping[str, Any], data: Mapping[str, Sequence[Any]]) -> History:
    problems: list[str] = []
    return merged(
        list(_parts(tags, data, LAYERS, problems)),
        [part for part in _parts(tags, data, HISTOGRAMS, problems) if part.layout.columns == BINS],
        _verdicts(data.get(FINDINGS, ()), problems),
        problems,
    )


def _parts(
    tags: Mapping[str, Any], data: Mapping[str, Sequence[Any]], name: str, problems: list[str]
) -> Iterator[Part]:
    for tag, layout in _layouts(tags, name, problems):
        shape = (len(layout.layers), len(layout.columns))
        samples = data.get(tag, ())
        fit = [each for each in samples if each.numpy.shape == shape]
        if len(fit) < len(samples):
            problems.append(f"{len(samples) - len(fit)} samples of {tag} are left out: not of its layout")
        values: list[Array] = [each.numpy.astype(np.float32, copy=False) for each in fit]
        yield Part(layout, [int(each.step) for each in fit], values)


def _verdicts(data: Sequence[Any], problems: list[str]) -> Verdicts | None:
    if not data:
        return None
    try:
        verdicts = Verdicts.from_json(bytes(data[-1].numpy.reshape(-1)[0]))
        for each in verdicts.findings:
            Finding.from_mapping(each)
    except (ValueError, TypeError, IndexError) as error:
        problems.append(f"{FINDINGS} is left out: {error}")
        return None
    return verdicts
