"""`bpkit verify`: prove what is registered, or what is named."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bpkit.commands._console import print_table, show_progress
from bpkit.core.errors import BpkitError
from bpkit.verification.report import MARKS, Report, explained, summary

if TYPE_CHECKING:
    from bpkit.core.spec import Spec

_STYLES = {MARKS["fail"]: "bold red", MARKS["warn"]: "yellow", MARKS["pass"]: "green"}


@click.command(name="verify")
@click.argument("names", nargs=-1, metavar="[NAME | MODULE:OBJECT]...")
@click.option(
    "--inputs",
    multiple=True,
    metavar="VALUES",
    help="What MODULE:OBJECT is called with: '4x6, 0.5', or MODULE:FUNCTION. Repeated, one after another.",
)
@click.option(
    "--reference", metavar="MODULE:OBJECT", help="The same mathematics, differentiated by autograd."
)
@click.option("--only", multiple=True, metavar="CHECK", help="Run this check alone (a name or glob).")
@click.option("--exclude", multiple=True, metavar="CHECK", help="Leave this check out (a name or glob).")
@click.option(
    "--full", is_flag=True, help="Run the costly checks as well (torch.compile with its own backend)."
)
@click.option("--jobs", type=click.IntRange(1), help="Processes [one a core].")
@click.option("--json", "as_json", is_flag=True, help="Print the reports as JSON.")
@click.option("--junit", type=click.Path(path_type=Path), help="Write them as JUnit XML.")
@click.option("--html", type=click.Path(path_type=Path), help="Write them as one self-contained page.")
@click.option("--checks", "list_checks", is_flag=True, help="List the checks and what each guards against.")
def verify(
    names: tuple[str, ...],
    inputs: tuple[str, ...],
    reference: str | None,
    only: tuple[str, ...],
    exclude: tuple[str, ...],
    full: bool,
    jobs: int | None,
    as_json: bool,
    junit: Path | None,
    html: Path | None,
    list_checks: bool,
) -> None:
    """Prove every registered backward, those of the given NAMEs, or any MODULE:OBJECT.

    A NAME is proven on its own samples; an object (an autograd.Function, a callable, a module, a
    torch.library operator) on --inputs, and against --reference, if there is one.

    Exits with 1 if a check fails, with 2 for a name that is not known.
    """
    from bpkit.verification.run import selected
    from bpkit.verification.targets import registered

    checks = selected(only or None, exclude or None, full=full)
    if list_checks:
        print_table(["check", "guards against"], [[check.name, check.harm] for check in checks])
        return
    for path in (junit, html):
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            raise BpkitError(
                f"{path} cannot be written: {'a directory' if path.is_dir() else 'no such directory'}"
            )
    started = time.perf_counter()
    settings = {"only": only or None, "exclude": exclude or None, "full": full}
    objects = [name for name in names if ":" in name]
    for name in names:
        if inputs and name[0].isdigit():
            raise BpkitError(
                f"{name} is no target; write all inputs as one: --inputs '{', '.join((*inputs, name))}'"
            )
    if (inputs or reference) and not objects:
        raise BpkitError("--inputs and --reference go with MODULE:OBJECT; a registered name brings its own")
    specs = (
        registered([name for name in names if ":" not in name])
        if not objects or len(objects) < len(names)
        else []
    )
    reports = [_object(name, inputs, reference, settings) for name in objects]
    reports += _specs(specs, settings, jobs or os.cpu_count() or 1)
    show_progress("")
    if as_json:
        print(json.dumps([report.as_dict() for report in reports], indent=2, ensure_ascii=False))
    else:
        _print(reports, time.perf_counter() - started)
    _write(junit, html, reports)
    if not all(report.ok for report in reports):
        sys.exit(1)


def _object(name: str, inputs: Sequence[str], reference: str | None, settings: dict[str, Any]) -> Report:
    """The report on `module:object`."""
    from bpkit.commands import _objects
    from bpkit.verification.run import verify

    if not inputs:
        raise BpkitError(f"{name} needs --inputs, such as --inputs '4x6, 0.5'")
    target = _objects.found(name)
    twin = None if reference is None else _objects.found(reference)
    return verify(target, *_objects.inputs(inputs), reference=twin, progress=_progress(name), **settings)


def _specs(specs: Sequence[Spec], settings: dict[str, Any], jobs: int) -> list[Report]:
    """The reports on registered specs, in their order; several are proven at a time."""
    from bpkit.verification.run import verify

    jobs = min(jobs, len(specs) // 4)  # a process takes two seconds to import torch
    if jobs < 2:
        return [
            verify(spec, progress=_progress(f"{number}/{len(specs)} {spec.name}"), **settings)
            for number, spec in enumerate(specs, 1)
        ]
    reports: dict[int, Report] = {}
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        running = {pool.submit(_prove, _key(spec), settings): number for number, spec in enumerate(specs)}
        try:
            for done in as_completed(running):
                number = running[done]
                reports[number] = done.result()
                show_progress(f"{len(reports)}/{len(specs)} {specs[number].name}")
        except BrokenProcessPool as error:
            left = ", ".join(spec.name for number, spec in enumerate(specs) if number not in reports)
            raise BpkitError(
                f"a process died while proving one of {left}; name them one by one to see which"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)
    return [reports[number] for number in range(len(specs))]


def _key(spec: Spec) -> tuple[str, str]:
    """How another process finds a spec again: two kinds may share a name."""
    return type(spec).__name__, spec.name


def _prove(key: tuple[str, str], settings: dict[str, Any]) -> Report:
    from bpkit.verification.run import verify
    from bpkit.verification.targets import registered

    (spec,) = [each for each in registered([key[1]]) if _key(each) == key]
    return verify(spec, **settings)


def _write(junit: Path | None, html: Path | None, reports: Sequence[Report]) -> None:
    """The files that were asked for."""
    from bpkit.verification.html import html as page
    from bpkit.verification.junit import junit as xml

    for path, written in ((junit, xml), (html, page)):
        if path is not None:
            path.write_text(written(reports), encoding="utf-8")


def _progress(label: str) -> Callable[[str], None]:
    return lambda check: show_progress(f"{label}: {check}")


def _print(reports: Sequence[Report], seconds: float) -> None:
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
    alone = sum("no reference was given" in result.detail for report in reports for result in report.results)
    if alone:
        print(f"\nwithout a reference {alone} checks had nothing to compare with, or less; give --reference")
    targets = "1 target" if len(reports) == 1 else f"{len(reports)} targets"
    print(f"\n{targets}, {verdict}: {summary(reports)} in {seconds:.1f} s")


def _style(heading: str, cell: str) -> str:
    """Red where something failed, yellow for a warning, green where all there is passed."""
    if heading == "target":
        return ""
    return next((style for mark, style in _STYLES.items() if mark in cell), "dim")
