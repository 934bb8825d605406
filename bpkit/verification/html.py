"""Reports as one self-contained HTML page: what was tried, what failed, and where the error lies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from math import isfinite, log10

from bpkit.verification.report import MARKS, CheckResult, Report, summary

WIDTH, HEIGHT = 520, 150
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 30
# Errors below this are rounding, and are drawn on the floor.
FLOOR = 1e-17

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2330; --soft: #667085; --line: #d8dde6; --paper: #ffffff;
        --pass: #16794a; --fail: #c4320a; --warn: #a15c07; --skip: #667085; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9f0; --soft: #98a2b3; --line: #344054; --paper: #14181f;
          --pass: #4cc38a; --fail: #ff8660; --warn: #f0b55a; --skip: #98a2b3; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .5rem; }
table { border-collapse: collapse; width: 100%; } td, th { text-align: left; vertical-align: top;
       padding: .3rem .7rem .3rem 0; border-top: 1px solid var(--line); }
th { font-weight: 600; color: var(--soft); border-top: 0; } td.time { text-align: right; color: var(--soft); }
td:first-child, td.time { white-space: nowrap; }
code { font: 13px ui-monospace, monospace; } p { margin: .2rem 0; } .soft { color: var(--soft); }
.pass { color: var(--pass); } .fail { color: var(--fail); }
.warn { color: var(--warn); } .skip { color: var(--skip); }
svg text { font: 11px system-ui, sans-serif; fill: var(--soft); } svg line { stroke: var(--line); }
svg circle { fill: var(--fail); fill-opacity: .65; } a { color: inherit; }
"""


def html(reports: Sequence[Report]) -> str:
    """The page; it loads nothing and runs no script."""
    failed = sum(not report.ok for report in reports)
    verdict = f"{failed} of {len(reports)} not proven" if failed else f"all {len(reports)} proven"
    overview = "".join(_overview(report) for report in reports)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>bpkit verify</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body>\n<h1>bpkit verify: {verdict}</h1>\n"
        f'<p class="soft">{escape(summary(reports))}</p>\n'
        f"<table><tr><th>target<th>verdict<th>checks<th></tr>{overview}</table>\n"
        + "".join(_section(report) for report in reports)
        + "</body></html>\n"
    )


def _overview(report: Report) -> str:
    name = escape(report.target)
    verdict = '<span class="pass">proven</span>' if report.ok else '<span class="fail">not proven</span>'
    return (
        f'<tr><td><a href="#{name}"><code>{name}</code></a><td>{verdict}<td>{escape(summary([report]))}'
        f'<td class="time">{report.seconds:.1f} s</tr>\n'
    )


def _section(report: Report) -> str:
    name = escape(report.target)
    rows = "".join(_row(result) for result in report.results)
    return f'<h2 id="{name}"><code>{name}</code></h2>\n<table>{rows}</table>\n'


def _row(result: CheckResult) -> str:
    mark = f'<span class="{result.status}">{MARKS[result.status]}</span>'
    text = f"<p>{escape(result.detail)}</p>" if result.detail else ""
    if result.remedy:
        text += f'<p class="soft">{escape(result.remedy)}</p>'
    if result.points:
        text += plot(result.points)
    return (
        f"<tr><td>{mark} <code>{escape(result.name)}</code><td>{text}"
        f'<td class="time">{result.seconds:.2f} s</tr>\n'
    )


def plot(points: Sequence[tuple[float, float]]) -> str:
    """The error of each element, on a log scale, over the input's value or the element's number, as SVG."""
    logs = [(x, log10(max(error, FLOOR)) if isfinite(error) else None) for x, error in points if isfinite(x)]
    known = [y for _, y in logs if y is not None]
    if not known:
        return ""
    low, high = min(known), max(max(known), min(known) + 1)
    first, last = min(x for x, _ in logs), max(x for x, _ in logs)

    def across(x: float) -> float:
        return LEFT + (x - first) / ((last - first) or 1) * (WIDTH - LEFT - RIGHT)

    def up(y: float) -> float:
        return HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    ticks = "".join(
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up(y):.1f}" y2="{up(y):.1f}"/>'
        f'<text x="{LEFT - 6}" y="{up(y) + 4:.1f}" text-anchor="end">1e{y:.0f}</text>'
        for y in _ticks(low, high)
    )
    dots = "".join(
        f'<circle cx="{across(x):.1f}" cy="{up(high if y is None else y):.1f}" r="2.5"/>' for x, y in logs
    )
    ends = (
        f'<text x="{LEFT}" y="{HEIGHT - 10}">{first:.4g}</text>'
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 10}" text-anchor="end">{last:.4g}</text>'
    )
    label = "relative error over the input's value, or the element's number"
    return (
        f'<svg width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="{escape(label)}">{ticks}{dots}{ends}'
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 10}" text-anchor="middle">{escape(label)}</text>'
        "</svg>"
    )


def _ticks(low: float, high: float) -> Iterable[float]:
    """Whole decades, at most five of them."""
    whole = range(int(low // 1), int(-(-high // 1)) + 1)
    step = -(-len(whole) // 5)
    return [float(y) for y in whole[::step] if low <= y <= high]
