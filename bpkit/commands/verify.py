"""`bpkit verify`: prove what is registered, or what is named."""

from __future__ import annotations

import json
import sys
import time

import click

from bpkit.commands._console import print_table
from bpkit.verification.report import MARKS, Report, explained, summary

_STYLES = {MARKS["fail"]: "bold red", MARKS["warn"]: "yellow", MARKS["pass"]: "green"}


@click.command(name="verify")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--only", multiple=True, metavar="CHECK", help="Run this check alone (a name or glob).")
@click.option("--exclude", multiple=True, metavar="CHECK", help="Leave this check out (a name or glob).")
@click.option("--json", "as_json", is_flag=True, help="Print the reports as JSON.")
@click.option("--checks", "list_checks", is_flag=True, help="List the checks and what each guards against.")
def verify(
    names: tuple[str, ...],
    only: tuple[str, ...],
    exclude: tuple[str, ...],
    as_json: bool,
    list_checks: bool,
) -> None:
    """Prove every registered backward, or those of the given NAMEs, on their own samples.

    Exits with 1 if a check fails, with 2 for a name that is not known.
    """
    from bpkit.verification.run import selected, verify
    from bpkit.verification.subjects import registered

    checks = selected(only or None, exclude or None)
    if list_checks:
        print_table(["check", "guards against"], [[check.name, check.harm] for check in checks])
        return
    started = time.perf_counter()
    reports = []
    specs = registered(names)
    for number, spec in enumerate(specs, 1):

        def progress(check: str, label: str = f"{number}/{len(specs)} {spec.name}") -> None:
            _show(f"{label}: {check}")

        reports.append(verify(spec, only=only or None, exclude=exclude or None, progress=progress))
    _show("")
    if as_json:
        print(json.dumps([report.as_dict() for report in reports], indent=2, ensure_ascii=False))
    else:
        _print(reports, time.perf_counter() - started)
    if not all(report.ok for report in reports):
        sys.exit(1)


def _show(line: str) -> None:
    """A line of progress that the next one overwrites, where somebody is watching."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)


def _print(reports: list[Report], seconds: float) -> None:
    """A row a target, a mark a check; below, each failure and warning; at last one line."""
    columns = list(dict.fromkeys(result.name for report in reports for result in report.results))
    rows = []
    for report in reports:
        marks = {result.name: MARKS[result.status] for result in report.results}
        others = [f"{each.name} {MARKS[each.status]}" for each in report.results if each.status != "pass"]
        rows.append([report.target, "".join(marks.get(column, "·") for column in columns), ", ".join(others)])
    print_table(["target", "checks", "not passed"], rows, styles=_style)
    legend = ", ".join(f"{mark} {status}" for status, mark in MARKS.items())
    print(f"\nchecks, in order: {', '.join(columns)} ({legend}, · does not apply)")
    for report in reports:
        bad = [result for result in report.results if result.status in ("fail", "warn")]
        if bad:
            print("\n".join(["", report.target, *explained(bad)]))
    failed = sum(not report.ok for report in reports)
    verdict = f"{failed} not proven" if failed else "all proven"
    targets = "1 target" if len(reports) == 1 else f"{len(reports)} targets"
    print(f"\n{targets}, {verdict}: {summary(reports)} in {seconds:.1f} s")


def _style(heading: str, cell: str) -> str:
    """Red where something failed, yellow for a warning, green where all there is passed."""
    if heading == "target":
        return ""
    return next((style for mark, style in _STYLES.items() if mark in cell), "dim")
