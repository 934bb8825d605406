"""How commands print: a table and colours for a person, whole plain lines for a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from unicodedata import east_asian_width

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: Iterable[str] = (),
    styles: Callable[[str, str], str] | None = None,
    title: str | None = None,
    plain_heading: bool = True,
) -> None:
    """Print `rows` under `columns` to stdout.

    On a terminal this is a table that folds within its width. Elsewhere it is one line a row, two spaces
    or more between cells, never wrapped, cut or coloured, so that `grep`, `awk` and a log see all of it.

    Args:
        columns: the headings, one a column.
        rows: cells as text, as many a row as there are columns.
        right: headings of the columns set flush right (figures).
        styles: `(heading, cell) -> rich style`, for the terminal alone.
        title: a line above the table.
        plain_heading: print the headings elsewhere too, as the first line.
    """
    flush_right = set(right)

    def pad(heading: str, cell: str, width: int) -> str:
        blank = " " * (width - _width(cell))
        return blank + cell if heading in flush_right else cell + blank

    cells = [[_one_line(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
        for heading in columns:
            table.add_column(heading, justify="right" if heading in flush_right else "left", overflow="fold")
        for row in cells:
            styled = zip(columns, row, strict=True)
            table.add_row(*(Text(cell, styles(heading, cell) if styles else "") for heading, cell in styled))
        console = Console()
        if title:
            console.print(Text(title, "bold"))
        console.print(table)
        return
    if title:
        print(title)
    lines: list[Sequence[str]] = [columns, *cells] if plain_heading else [*cells]
    widths = [max(map(_width, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(map(pad, columns, line, widths)).rstrip())


def show_progress(line: str) -> None:
    """A line on stderr that the next one overwrites, where somebody is watching; an empty one at the end."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)


def announced(names: Sequence[str]) -> Iterator[str]:
    """`names`, each shown as progress before it is given."""
    for number, name in enumerate(names, 1):
        show_progress(f"{number}/{len(names)} {name}")
        yield name
    show_progress("")


def _one_line(cell: str) -> str:
    """Without line breaks, and without the control characters that a stranger's text may hold."""
    return "".join(character for character in " ".join(cell.split()) if character.isprintable())


def _width(text: str) -> int:
    """Columns that `text` takes on a terminal."""
    return sum(2 if east_asian_width(character) in "WF" else 1 for character in text)
