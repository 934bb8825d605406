"""`Source`: the runs that TensorBoard has loaded; what is asked for is read once, and again when it grows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from tensorboard.data import provider  # type: ignore[import-untyped]

from bpkit.core.errors import BpkitError
from bpkit.core.finding import Finding
from bpkit.tensorboard.held import Held
from bpkit.tensorboard.history import Array, History, Part, merged
from bpkit.tensorboard.record import BINS, FINDINGS, HISTOGRAMS, LAYERS, PLUGIN, Layout, Verdicts

SAMPLES = 512  # more than a picture shows; TensorBoard keeps a hundred unless it is told otherwise
# Bytes of samples read of one run: they come through a pipe at 400 MB a second, the page waits for them, and
# TensorBoard's data server refuses to answer with more than 256 MB.
READ = 2**24
HELD = 16  # runs whose samples are kept in memory

Tags = Mapping[str, Any]  # what the provider tells of each tag of a run


@dataclass(frozen=True)
class Entry:
    """A run in the list of runs.

    Attributes:
        name: its name. Untrusted text.
        step: the last one logged.
        written: when, in seconds since the epoch.
        version: another one whenever the run has changed.
        judged: another one whenever its verdicts have changed.
        layers: how many the latest layout has.
        model: class name of the model.
        columns: statistics.
        problems: what of its metadata cannot be read.
    """

    name: str
    step: int
    written: float
    version: str
    judged: str
    layers: int
    model: str
    columns: tuple[str, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Judgement:
    """The verdicts on a run that were logged last.

    Attributes:
        verdicts: None where there are none, or none that can be read.
        findings: those in them.
        problems: what cannot be read.
    """

    verdicts: Verdicts | None = None
    findings: tuple[Finding, ...] = ()
    problems: tuple[str, ...] = ()


class Source:
    """Runs read through TensorBoard's data provider."""

    def __init__(self, data: Any) -> None:
        self._data = data
        self._entries: Held[Entry] = Held()
        self._histories: Held[History] = Held(HELD)
        self._judgements: Held[Judgement] = Held()

    def entries(self, context: Any, experiment: str) -> list[Entry]:
        """All runs that hold something of bpkit's, by name."""
        return [
            self._entries.get((experiment, name), _version(tags), partial(_entry, name, tags))
            for name, tags in sorted(self._list(context, experiment).items())
        ]

    def history(self, context: Any, experiment: str, run: str) -> History:
        """The samples of a run.

        Raises:
            BpkitError: there is no such run.
        """
        tags = self._tags(context, experiment, run)
        problems: list[str] = []

        def read() -> History:
            layouts = list(_layouts(tags, LAYERS, problems))
            size = sum(4 * len(layout.layers) * len(layout.columns) for _, layout in layouts)
            most = min(SAMPLES, max(2, READ // max(1, size)))
            data = self._read(context, experiment, [run], [tag for tag, _ in layouts], most).get(run, {})
            parts = [_part(tag, layout, data.get(tag, ()), problems) for tag, layout in layouts]
            return merged(parts, problems)

        return self._histories.get((experiment, run), _version(tags, LAYERS), read)

    def histogram(self, context: Any, experiment: str, run: str, layer: str) -> tuple[int, Array] | None:
        """The step and the counts in `record.BINS` that were logged last of a layer, None without any.

        Raises:
            BpkitError: there is no such run.
        """
        tags = self._tags(context, experiment, run)
        for tag, layout in reversed(list(_layouts(tags, HISTOGRAMS, []))):
            if layer in layout.layers and layout.columns == BINS:
                data = self._read(context, experiment, [run], [tag], 1).get(run, {})
                part = _part(tag, layout, data.get(tag, ()), [])
                if part.steps:
                    return part.steps[-1], part.values[-1][layout.layers.index(layer)]
        return None

    def judgement(self, context: Any, experiment: str, run: str) -> Judgement:
        """The verdicts on a run.

        Raises:
            BpkitError: there is no such run.
        """
        return self._judged(context, experiment, {run: self._tags(context, experiment, run)})[run]

    def judgements(self, context: Any, experiment: str) -> Mapping[str, Judgement]:
        """The verdicts on all runs, by name."""
        return self._judged(context, experiment, self._list(context, experiment))

    def _judged(self, context: Any, experiment: str, runs: Mapping[str, Tags]) -> Mapping[str, Judgement]:
        held = {run: ((experiment, run), _version(tags, FINDINGS)) for run, tags in sorted(runs.items())}
        known = {run: self._judgements.find(*each) for run, each in held.items()}
        unread = [run for run, found in known.items() if found is None]
        data = self._read(context, experiment, unread, [FINDINGS], 1) if unread else {}  # one call for all
        return {
            run: found
            or self._judgements.get(*held[run], partial(_judgement, data.get(run, {}).get(FINDINGS, ())))
            for run, found in known.items()
        }

    def _list(self, context: Any, experiment: str, run: str | None = None) -> Mapping[str, Tags]:
        wanted = provider.RunTagFilter(runs=None if run is None else [run])
        found: Mapping[str, Tags] = self._data.list_tensors(
            context, experiment_id=experiment, plugin_name=PLUGIN, run_tag_filter=wanted
        )
        return found

    def _tags(self, context: Any, experiment: str, run: str) -> Tags:
        tags = self._list(context, experiment, run).get(run)
        if not tags:
            raise BpkitError(f"no run {run!r} that bpkit has watched")
        return tags

    def _read(
        self, context: Any, experiment: str, runs: Iterable[str], tags: Iterable[str], most: int
    ) -> Mapping[str, Mapping[str, Sequence[Any]]]:
        """At most so many samples of each tag, the last among them."""
        found: Mapping[str, Mapping[str, Sequence[Any]]] = self._data.read_tensors(
            context,
            experiment_id=experiment,
            plugin_name=PLUGIN,
            downsample=most,
            run_tag_filter=provider.RunTagFilter(runs=list(runs), tags=list(tags)),
        )
        return found


def _version(tags: Tags, name: str = "") -> str:
    return ";".join(
        f"{tag}@{tags[tag].max_step}/{tags[tag].max_wall_time}"
        for tag in sorted(tags, key=_number)
        if not name or _number(tag)[0] == name
    )


def _number(tag: str) -> tuple[str, int]:
    """Sorts `bpkit/layers/10` behind `bpkit/layers/9`."""
    name, _, number = tag.rpartition("/")
    return (name, int(number)) if number.isdecimal() else (tag, 1)


def _layouts(tags: Tags, name: str, problems: list[str]) -> Iterator[tuple[str, Layout]]:
    """The tags of that name or continued under it, with their layouts, the earliest first."""
    for tag in sorted(tags, key=_number):
        if _number(tag)[0] == name:
            try:
                yield tag, Layout.from_json(tags[tag].plugin_content)
            except ValueError as error:
                problems.append(f"{tag} is left out: {error}")


def _entry(name: str, tags: Tags) -> Entry:
    problems: list[str] = []
    layouts = [layout for _, layout in _layouts(tags, LAYERS, problems)]
    latest = layouts[-1] if layouts else Layout((), (), ())
    return Entry(
        name=name,
        step=max(each.max_step for each in tags.values()),
        written=max(each.max_wall_time for each in tags.values()),
        version=_version(tags),
        judged=_version(tags, FINDINGS),
        layers=len(latest.layers),
        model=latest.model,
        columns=tuple(dict.fromkeys(column for layout in layouts for column in layout.columns)),
        problems=tuple(problems),
    )


def _part(tag: str, layout: Layout, samples: Sequence[Any], problems: list[str]) -> Part:
    shape = (len(layout.layers), len(layout.columns))
    fit = [each for each in samples if each.numpy.shape == shape]
    if len(fit) < len(samples):
        problems.append(f"{len(samples) - len(fit)} samples of {tag} are left out: not of its layout")
    values: list[Array] = [each.numpy.astype(np.float32, copy=False) for each in fit]
    return Part(layout, [int(each.step) for each in fit], values)


def _judgement(data: Sequence[Any]) -> Judgement:
    if not data:
        return Judgement()
    try:
        verdicts = Verdicts.from_json(bytes(data[-1].numpy.reshape(-1)[0]))
        return Judgement(verdicts, tuple(map(Finding.from_mapping, verdicts.findings)))
    except (ValueError, TypeError, IndexError) as error:
        return Judgement(problems=(f"{FINDINGS} is left out: {error}",))
