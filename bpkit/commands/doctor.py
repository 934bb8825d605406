"""`bpkit doctor RUNDIR`: what is wrong with a run, from its logs alone. Imports no torch."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
import time
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bpkit.core.errors import BpkitError

if TYPE_CHECKING:
    from bpkit.commands._doctor_case import Case, Summary

_STYLES = {"critical": "red", "warning": "yellow", "info": "cyan"}
_HOW = "bpkit.watch(model, optimizer, logdir=...) and `bpkit train` write them"


@click.command(name="doctor")
@click.argument("rundir", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON: findings, cost, losses, the last sample.")
@click.option("--html", type=click.Path(path_type=Path), help="Write a self-contained page as well.")
def doctor(rundir: Path, as_json: bool, html: Path | None) -> None:
    """Say what is wrong with each run below RUNDIR, finished or still running, from its logs.

    Exits with 1 if a finding is critical, with 2 where there are no logs of bpkit's.
    """
    from bpkit.commands import _doctor_page
    from bpkit.commands._doctor_case import overall

    if html is not None and (html.is_dir() or not html.parent.is_dir()):
        raise BpkitError(
            f"{html} cannot be written: {'a directory' if html.is_dir() else 'no such directory'}"
        )
    sections: list[str] = []
    found: list[Summary] = []
    parts: list[str] = []
    for case in _cases(rundir):
        if as_json:
            parts.append(json.dumps(case.as_dict(), ensure_ascii=False, allow_nan=False))
        else:
            if found and (case.findings or found[-1].worst):
                print()
            _print(case)
        if html is not None:
            sections.append(_doctor_page.section(case))
        found.append(case.summary)
    if as_json:
        print(f"[{', '.join(parts)}]")
    elif len(found) > 1:
        print(f"\n{overall(found)}")
    if html is not None:
        _write(html, _doctor_page.page(found, sections))
    if any(each.worst == "critical" for each in found):
        raise click.exceptions.Exit(1)


def _cases(rundir: Path) -> Iterator[Case]:
    """The watched runs below `rundir`, each read when its turn comes.

    Raises:
        BpkitError: there are none; the text says what there is.
    """
    from bpkit.commands._doctor_case import Case
    from bpkit.tensorboard.reader import runs

    if not rundir.is_dir():
        what = "is a file; name the directory that it is in" if rundir.exists() else "is not there"
        raise BpkitError(f"{rundir} {what}")
    watched, others = False, set[str]()
    for run in runs(rundir):
        if run.watched:
            watched = True
            yield Case(rundir, run, time.time())
        else:
            others |= run.tags or {"nothing"}
    if watched:
        return
    if others:
        raise BpkitError(f"{rundir}: its TensorBoard logs are of no watch, they hold {_some(others)}; {_HOW}")
    held = _some([path.name for path in rundir.iterdir()] or ["nothing"])
    raise BpkitError(f"{rundir}: no event files in it or below; it holds {held}; {_HOW}")


def _some(names: Collection[str]) -> str:
    """The first five of them, and how many there are beside these."""
    from bpkit.commands._doctor_case import plain

    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(map(plain, sorted(names)[:5])) + more


def _print(case: Case) -> None:
    """One line for a healthy run; else a header, the picture by depth, and the findings."""
    if not case.findings:
        _say("; ".join(filter(None, (case.title, case.cost))), "green")
        _say_unlooked(case)
        return
    _say(case.title, "bold")
    _say(case.circumstances, "dim")
    picture = case.picture()
    if picture:
        print(f"\n{picture}")
    for finding in case.legible:
        print()
        head, *rest = str(finding).splitlines()
        _say(head, _STYLES[finding.severity])
        for line in rest:
            _say(line, indent=12)
    _say_unlooked(case)


def _say_unlooked(case: Case) -> None:
    for line in case.unlooked:
        _say(line, "yellow")


def _say(line: str, style: str = "", indent: int = 2) -> None:
    """A line: folded and coloured on a terminal, as it is anywhere else."""
    if not sys.stdout.isatty():
        print(line)
        return
    from rich.console import Console
    from rich.text import Text

    folded = textwrap.fill(
        line,
        max(shutil.get_terminal_size().columns, 40),
        subsequent_indent=" " * indent,
        break_on_hyphens=False,
    )
    Console().print(Text(folded, style), soft_wrap=True)


def _write(path: Path, page: Iterable[str]) -> None:
    try:
        with path.open("w", encoding="utf-8") as file:
            file.writelines(page)
    except OSError as error:
        raise BpkitError(f"{path} cannot be written: {error.strerror or error}") from error
