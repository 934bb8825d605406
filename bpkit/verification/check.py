"""What a check is, and the ways in which one can end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


class Failed(Exception):  # noqa: N818 - an end, not an error
    """The target is wrong here; the text shows the numbers side by side, `points` are a plot of the error."""

    def __init__(self, text: object, points: tuple[tuple[float, float], ...] = ()) -> None:
        super().__init__(str(text))
        self.points = points


class Warned(Exception):  # noqa: N818 - an end, not an error
    """The target is right, and could serve its user better."""


class Skipped(Exception):  # noqa: N818 - an end, not an error
    """Nothing was proven; the text says why."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One way a custom backward is known to go wrong.

    Attributes:
        name: what `only`, `exclude` and reports call it.
        harm: what goes wrong for a user where it fails, in a sentence.
        remedy: how to mend that.
        run: takes a subject; returns a remark (or None) when it passes, raises `Failed`, `Warned` or
            `Skipped` otherwise. Any other exception is a failure, shown with its type and text.
        subject: the class of subjects it applies to; `Case` is a function with inputs.
        every: run on every sample, or (where one call takes a second) on the first alone.
        decisive: where it fails, the others say nothing, and are not run.
        costly: takes seconds: run where it is named, or where everything is asked for.
    """

    name: str
    harm: str
    remedy: str
    run: Callable[[Any], str | None]
    subject: type
    every: bool = True
    decisive: bool = False
    costly: bool = False


def one_line(error: BaseException) -> str:
    """`RuntimeError: its first line`, for a report."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}".rstrip(": ")
