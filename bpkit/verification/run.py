"""`verify`: every check that applies, on every sample of a target."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import torch

from bpkit.core.errors import unknown_name
from bpkit.verification.check import Check, Failed, Skipped, Warned, one_line
from bpkit.verification.checks import CHECKS
from bpkit.verification.report import CheckResult, Report, Status
from bpkit.verification.targets import Target, target_of

Names = str | Iterable[str] | None
Progress = Callable[[str], None]

_ENDS: dict[type[Exception], Status] = {Failed: "fail", Warned: "warn", Skipped: "skip"}


def verify(
    target: Any,
    *inputs: Any,
    reference: Any = None,
    only: Names = None,
    exclude: Names = None,
    full: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Try every way in which a custom backward is known to go wrong.

        report = bpkit.verify(MyFunction, torch.randn(4, 6), reference=torch.nn.functional.gelu)
        print(report)
        report.raise_if_failed()

    Args:
        target: an `autograd.Function` class (called through `apply`), any callable, a module, a spec, or
            the name of something registered.
        *inputs: what it is called with, tensors or not, nested or not; copies are used, in float64 where
            floating-point. Those that require a gradient are differentiated; if none does, all are. A spec
            or a name brings its own.
        reference: the same mathematics, differentiated by autograd; for a module, a module with the
            same parameters. Without it, what needs a comparison is skipped.
        only: run these checks alone: a name, a glob, or several.
        exclude: leave these out, likewise.
        full: run the costly checks as well: `torch.compile` with generated kernels.
        progress: called with the name of each check before it runs.

    Returns:
        A `Report`; only failures make it not ok.

    Raises:
        UnknownNameError: a check or a registered name that does not exist, with the nearest that does.
        BpkitError: a target that cannot be called, or inputs for one that brings its own.
    """
    checks = selected(only, exclude, full=full)
    with _surroundings():
        return examined(target_of(target, inputs, reference), checks, progress)


@contextmanager
def _surroundings() -> Iterator[None]:
    """The caller's generator, grad mode, warnings and threads are as they were, afterwards.

    One thread: on samples this small the hand-over to a second costs more than it saves, and on a busy
    machine ten times more.
    """
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about experimental features that a check tries on purpose
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def selected(only: Names = None, exclude: Names = None, *, full: bool = False) -> list[Check]:
    """The checks that match `only` and not `exclude`, in their order; the costly ones if named, or `full`.

    Raises:
        UnknownNameError: a name or glob that matches no check.
    """
    wanted, unwanted = _matching(only), _matching(exclude)
    return [
        check
        for check in CHECKS
        if (check.name in wanted or (only is None and (full or not check.costly)))
        and check.name not in unwanted
    ]


def _matching(patterns: Names) -> set[str]:
    each = [patterns] if isinstance(patterns, str) else list(patterns or ())
    names = [check.name for check in CHECKS]
    found: set[str] = set()
    for pattern in each:
        matches = {name for name in names if fnmatchcase(name, pattern)}
        if not matches:
            raise unknown_name("check", pattern, names)
        found |= matches
    return found


def examined(target: Target, checks: Iterable[Check], progress: Progress | None = None) -> Report:
    """The report on `target`."""
    results = []
    for check in checks:
        subjects = [subject for subject in target.subjects if isinstance(subject, check.subject)]
        if not subjects:
            continue
        if progress is not None:
            progress(check.name)
        if check.name in target.not_proven:
            results.append(CheckResult(check.name, "skip", target.not_proven[check.name]))
            continue
        start = time.perf_counter()
        result = _result(check, subjects if check.every else subjects[:1])
        results.append(replace(result, seconds=time.perf_counter() - start))
        if check.decisive and result.status == "fail":
            break
    return Report(target.name, tuple(results))


def _result(check: Check, subjects: list[Any]) -> CheckResult:
    """One result for all samples: the worst, on the smallest sample that shows it."""
    ends = [(subject, _end(check, subject)) for subject in subjects]
    for status in ("fail", "warn"):
        shown = [each for each in ends if each[1].status == status]
        if shown:
            subject, end = min(shown, key=lambda each: getattr(each[0], "numel", 0))
            sample = f"[{subject.label}] " if subject.label else ""
            return replace(end, detail=f"{sample}{end.detail}", remedy=f"{check.harm} {check.remedy}")
    passed = [end.detail for _, end in ends if end.status == "pass"]
    skipped = [end.detail for _, end in ends if end.status == "skip"]
    if not passed:
        return CheckResult(check.name, "skip", skipped[0])
    remarks = list(dict.fromkeys(detail for detail in passed if detail))
    if skipped:
        remarks.append(f"{len(skipped)} of {len(ends)} samples skipped: {skipped[0]}")
    return CheckResult(check.name, "pass", "; ".join(remarks))


def _end(check: Check, subject: Any) -> CheckResult:
    """How `check` ends on `subject`: whatever it raises is an end, never a crash."""
    try:
        return CheckResult(check.name, "pass", check.run(subject) or "")
    except (Failed, Warned, Skipped) as end:
        return CheckResult(check.name, _ENDS[type(end)], str(end), points=getattr(end, "points", ()))
    except Exception as error:
        return CheckResult(check.name, "fail", one_line(error))
