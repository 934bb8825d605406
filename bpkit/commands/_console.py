"""How commands print: a table and colours for a person, whole plain lines for a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
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
    """
    flush_right = set(right)
    cells = [[" ".join(cell.split()) for cell in row] for row in rows]
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
    widths = [max(map(_width, column)) for column in zip(columns, *cells, strict=True)]
    for row in (columns, *cells):
        padded = [
            " " * (width - _width(cell)) + cell
            if heading in flush_right
            else cell + " " * (width - _width(cell))
            for heading, cell, width in zip(columns, row, widths, strict=True)
        ]
        print("  ".join(padded).rstrip())


def _width(text: str) -> int:
    """Columns that `text` takes on a terminal."""
    return sum(2 if east_asian_width(character) in "WF" else 1 for character in text)
