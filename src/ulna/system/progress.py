"""Progress bars for long work, drawn only when a person is looking.

Rooms call `track` or `bar`; the command line switches drawing off with `quiet`. Bars go to standard error, so that
standard output stays a table or JSON.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from ulna.errors import printable_lines, printable_text

T = TypeVar("T")
_quiet = False
_console: Any = None


class Lines(logging.Formatter):
    """Log lines that can be shown as they are, whatever names stand in them."""

    def format(self, record: logging.LogRecord) -> str:
        """As `logging.Formatter`, with signs that move the cursor written as numbers."""
        return printable_lines(super().format(record))


def quiet(on: bool = True) -> None:
    """Draw no bars from now on (or draw them again)."""
    global _quiet
    _quiet = on


def console() -> Any:
    """The one rich console on standard error: bars and log lines share it, so that they do not overwrite each other."""
    global _console
    if _console is None or _console.file is not sys.stderr:
        _console = make_console(sys.stderr)
    return _console


def make_console(file: Any = None) -> Any:
    """A rich console on which no name can move the cursor: signs that are not printable are written as numbers."""
    from rich.console import Console

    class Printable(Console):
        def on_broken_pipe(self) -> None:
            """Who read has gone, as in `ulna models | head`: nothing more is shown, but the work goes on."""
            self.quiet = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())

        def render(self, renderable: Any, options: Any = None) -> Any:
            for segment in super().render(renderable, options):
                harmless = segment.control or segment.text == "\n" or segment.text.isprintable()
                yield segment if harmless else segment._replace(text=printable_text(segment.text))

    return Printable(file=file)


@contextmanager
def bar(description: str, total: int) -> Iterator[Callable[..., None]]:
    """A bar of `total` steps; yields `advance(steps=1, note="")`. Nothing is drawn unless standard error is a terminal."""
    if _quiet or not sys.stderr.isatty():
        yield lambda steps=1, note="": None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console(), transient=True) as progress:
        task = progress.add_task(description, total=total, note="")
        yield lambda steps=1, note="": progress.update(task, advance=steps, note=note)


def track(items: Sequence[T], description: str) -> Iterator[T]:
    """Go through `items` with a bar."""
    with bar(description, len(items)) as advance:
        for item in items:
            yield item
            advance()
