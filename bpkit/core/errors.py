"""The errors a user sees: one line that says what was wrong, where, and what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MOST = 24  # names that one line still shows


class BpkitError(Exception):
    """A mistake that the user can mend. The command line prints its text alone and exits with 2."""


class UnknownNameError(BpkitError):
    """A name that is not registered, or a key that a configuration does not have."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name closest to `name`, or None when nothing is close.

    Case counts only between names that differ in nothing else: LSTN is LSTM, and lstn is lstm.
    """
    candidates = sorted(known)
    close = difflib.get_close_matches(name.lower(), {each.lower() for each in candidates}, n=1, cutoff=0.6)
    alike = [each for each in candidates if each.lower() in close]
    return max(alike, key=lambda each: difflib.SequenceMatcher(None, name, each).ratio(), default=None)


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """`unknown loss 'mes': did you mean 'mse'?`, or the names there are when nothing is close."""
    names = sorted(known)
    close = nearest(name, names)
    shown = ", ".join(names[:MOST]) or "none"
    more = f" and {len(names) - MOST} more; `bpkit plugins` lists them" if len(names) > MOST else ""
    hint = f"did you mean {close!r}?" if close else f"there are: {shown}{more}"
    return UnknownNameError(f"unknown {kind} {name!r}: {hint}")
