"""The doctor's findings as one self-contained HTML page, which loads nothing and runs no script."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from html import escape

import numpy as np

from bpkit import __version__
from bpkit.commands._doctor_case import NORM, Case, Summary, counted, overall, plain
from bpkit.commands._doctor_curves import curves
from bpkit.commands._doctor_map import Cells, heat_map
from bpkit.core.finding import Finding
from bpkit.tensorboard.reader import Series
from bpkit.tensorboard.record import ABSENT

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2330; --soft: #667085; --line: #d8dde6; --paper: #ffffff;
        --healthy: #16794a; --critical: #c4320a; --warning: #a15c07; --info: #175cd3; --second: #b54708; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9f0; --soft: #98a2b3; --line: #344054; --paper: #14181f; --healthy: #4cc38a;
          --critical: #ff8660; --warning: #f0b55a; --info: #84adff; --second: #f0b55a; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 62rem; margin: 2rem auto; padding: 0 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2.5rem 0 .2rem; }
h3 { font-size: .95rem; margin: 1.4rem 0 .3rem; } p { margin: .2rem 0; } .soft { color: var(--soft); }
ol { padding-left: 1.6rem; } ol li { margin: .8rem 0; } ul { list-style: none; padding: 0; }
dl { display: grid; grid-template-columns: 5.5rem 1fr; margin: .2rem 0; }
dt { color: var(--soft); } dd { margin: 0; }
code { font: 13px ui-monospace, monospace; } a { color: inherit; } summary { cursor: pointer; }
.healthy { color: var(--healthy); } .critical { color: var(--critical); }
.warning { color: var(--warning); } .info { color: var(--info); }
svg { display: block; width: 100%; height: auto; } svg line { stroke: var(--line); }
svg text { font: 11px system-ui, sans-serif; fill: var(--soft); }
svg .frame { fill: none; stroke: var(--line); } svg .mark { fill: var(--ink); font-weight: 600; }
svg .curve { fill: none; stroke-width: 1.6; } svg .bad { fill: var(--critical); stroke: none; }
svg line.bad { stroke: var(--critical); }
svg .c0 { stroke: var(--info); } svg .c1 { stroke: var(--second); }
svg .name { stroke: none; font-weight: 600; }
svg .name.c0 { fill: var(--info); } svg .name.c1 { fill: var(--second); }
@media print {
  body { margin: 0; max-width: none; } h2, h3 { break-after: avoid; } svg, li { break-inside: avoid; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""


def page(found: Sequence[Summary], sections: Sequence[str]) -> Iterator[str]:
    """The page, in pieces: a line a run, then the runs' sections in the same order."""
    yield (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>bpkit doctor</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body>\n<h1>bpkit doctor</h1>\n"
        f'<p class="soft">bpkit {__version__}, from the logs as of {time.strftime("%Y-%m-%d %H:%M %Z")}</p>\n'
    )
    if len(found) > 1:
        rows = "".join(
            f'<li class="{each.worst or "healthy"}"><a href="#run-{number}">{escape(each.title)}</a>'
            for number, each in enumerate(found, 1)
        )
        yield f'<p class="soft">{overall(found)}</p>\n<ul>{rows}</ul>\n'
    for number, section_ in enumerate(sections, 1):
        yield f'<section id="run-{number}">{section_}</section>\n'
    yield "</body></html>\n"


def section(case: Case) -> str:
    """One run: how it stands, the findings, the heat maps, the losses."""
    findings = case.legible
    worst = findings[0].severity if findings else "healthy"
    parts = [
        f'<h2 class="{worst}">{escape(case.title)}</h2>\n<p class="soft">{escape(case.circumstances)}</p>\n',
    ]
    parts += [f'<p class="soft">{escape(line)}</p>\n' for line in case.unlooked]
    if findings:
        parts.append(f"<ol>{''.join(map(_finding, findings))}</ol>\n")
    marks = [(finding.step, str(number)) for number, finding in enumerate(findings, 1)]
    for series in case.run.series:
        cells = _cells(series)
        if not cells.names:
            continue
        label = f"{NORM} by layer, input first, and step"
        note = "; a number above the map is the first step of that finding" if findings else ""
        parts.append(
            f'<h3>{label}</h3>\n<p class="soft">{_extent(cells)}{note}</p>\n'
            f"{_bad(cells)}{heat_map(cells, marks, label)}\n"
        )
    drawn = curves({name: list(curve) for name, curve in case.run.losses.items()}, "loss by step")
    if drawn:
        parts.append(f"<h3>loss by step</h3>\n{drawn}\n")
    return "".join(parts)


def _cells(series: Series) -> Cells:
    """The gradient norms of the layers that have some: a module without parameters does not."""
    norms = list(series.column(NORM) or ())
    if not norms:
        return Cells((), (), np.empty((0, 0), np.float32))
    values = np.stack([value for _, value in norms], 1)
    measured = np.flatnonzero((values != np.float32(ABSENT)).any(1))
    names = [plain(series.layout.layers[row]) for row in measured]
    return Cells([step for step, _ in norms], names, values[measured])


def _finding(finding: Finding) -> str:
    where = f"<code>{escape(finding.where)}</code>" if finding.layers else finding.where
    if len(finding.layers) > 3:
        names = ", ".join(finding.layers)
        where = f"<details><summary>{where}</summary><code>{escape(names)}</code></details>"
    rows = (
        ("where", where),
        ("when", escape(finding.since)),
        ("evidence", escape(finding.figures)),
        ("advice", escape(finding.advice)),
    )
    return (
        f'<li><strong class="{finding.severity}">{escape(finding.kind)}</strong> '
        f'<span class="soft">{finding.severity}</span><dl>'
        + "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in rows if text)
        + "</dl></li>"
    )


def _extent(cells: Cells) -> str:
    """What is on the map, in words."""
    shared = f", a row the largest of {cells.share} neighbours" if cells.share > 1 else ""
    return (
        f"{counted(len(cells.names), 'layer')}{shared}; a column a sample, {len(cells.steps)} of them shown"
    )


def _bad(cells: Cells) -> str:
    """The layers with values that are not finite, in words: colour alone does not reach everybody."""
    bad = ~np.isfinite(cells.values) & (cells.values != np.float32(ABSENT))
    rows = sorted((cells.steps[int(bad[row].argmax())], int(row)) for row in np.flatnonzero(bad.any(1)))
    if not rows:
        return ""
    shown = ", ".join(f"<code>{escape(cells.names[row])}</code>" for _, row in rows[:3])
    more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
    return f'<p class="critical">Not finite, here from step {rows[0][0]:,}: {shown}{more}.</p>\n'
