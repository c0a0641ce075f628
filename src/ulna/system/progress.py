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
_shared: Any = None  # what draws the bars that stand now


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
    """A bar of `total` steps; yields `advance(steps=1, note="")`. Nothing is drawn unless standard error is a terminal.

    A bar within another one stands on a line below it.
    """
    with _drawn() as drawn:
        if drawn is None:
            yield lambda steps=1, note="": None
            return
        task = drawn.add_task(description, total=total, note="")
        try:
            yield lambda steps=1, note="": drawn.update(task, advance=steps, note=note)
        finally:
            drawn.remove_task(task)


@contextmanager
def _drawn() -> Iterator[Any]:
    """What draws bars: one for all that stand within each other; None where nobody is looking."""
    global _shared
    if _quiet or not sys.stderr.isatty():
        yield None
        return
    if _shared is not None:
        yield _shared
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),  # moves however long a step takes
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    # the pace of the last hour: by that of half a minute, no time is left where a step takes longer
    with Progress(*columns, console=console(), transient=True, speed_estimate_period=3600) as _shared:
        try:
            yield _shared
        finally:
            _shared = None


def track(items: Sequence[T], description: str) -> Iterator[T]:
    """Go through `items` with a bar."""
    with bar(description, len(items)) as advance:
        for item in items:
            yield item
            advance()
