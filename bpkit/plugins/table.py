"""The table of layers and losses, from their specs: the README's, and `bpkit plugins --layers`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import groupby
from typing import Any

from bpkit.core.spec import ModuleSpec

HEADER = "| name | torch twin | saved for backward | proven |\n|---|---|---|---|"
# `Conv1d, Conv2d, Conv3d` is one row of the table, `Conv1d to 3d`.
_AXES = re.compile(r"^(.*?)([123]d)$")


def table(specs: Iterable[ModuleSpec]) -> str:
    """A Markdown table, a row for each spec, or for those of a page that differ in nothing but their axes."""
    rows = [_row(list(group)) for _, group in groupby(specs, _alike)]
    return "\n".join((HEADER, *rows))


def _alike(spec: ModuleSpec) -> tuple[Any, ...]:
    stem = _AXES.sub(r"\1", spec.name)
    return spec.module.__module__, stem, spec.saves, tuple(sorted(spec.not_proven))


def _row(specs: list[ModuleSpec]) -> str:
    names = ", ".join(f"`{spec.name}`" for spec in specs)
    twins = ", ".join(f"`{spec.reference.__name__}`" for spec in specs if spec.reference is not None)
    left = sorted({name for spec in specs for name in spec.not_proven})
    proven = f"all but {', '.join(left)}" if left else "all"
    return f"| {names} | {twins or '-'} | {specs[0].saves} | {proven} |"
