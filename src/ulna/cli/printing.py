"""What tables for the terminal are made of: cells, lines, and names that cannot move the cursor."""

from __future__ import annotations

import math
import shlex

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ulna.errors import printable

SYNTHETIC = "the data are synthetic, made by ulna: these figures say nothing about real images"


def safe(text: object) -> str:
    """A name that somebody else gave, for a cell or a heading: neither markup nor signs that move the cursor."""
    return escape(printable(text))


def make_table(*columns: str, title: str | None = None) -> Table:
    """Without lines; the first column to the left, the others to the right and unbroken."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold", title_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=number > 0)
    return table


def print_plain(console: Console, text: str, style: str | None = None) -> None:
    """Text as it is: a path in it is no markup, and is not broken."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def mean_and_interval(measure: dict[str, float | None], *, interval: bool = True) -> str:
    """A mean with its interval, as a cell; a dash where it is not defined."""
    mean, low, high = measure["mean"], measure["low"], measure["high"]
    if mean is None or math.isnan(mean):
        return "-"
    digits = 3 if mean < 1.5 else 2
    shown = f"{mean:.{digits}f}"
    if interval and low is not None and high is not None and math.isfinite(low):
        shown += f" \\[{low:.{digits}f}, {high:.{digits}f}]"
    return shown


def quoted(path: object) -> str:
    """A path as a shell takes it."""
    return shlex.quote(str(path))
