"""Progress bars for long work, drawn only when a person is looking.

Rooms call `track`, `bar` or `board`; the command line switches drawing off with `quiet`, a process of a study tells its bars
to the study. Bars go to standard error, so that standard output stays a table or JSON.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ulna.errors import printable_lines, printable_text

T = TypeVar("T")
_quiet = False
_console: Any = None
_shared: Any = None  # what draws the bars that stand now
_listener: Callable[[Standing], None] | None = None


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
    stderr = getattr(sys.stderr, "rich_proxied_file", sys.stderr)  # bars stand before it while they are drawn
    if _console is None or _console.file is not stderr:
        _console = make_console(stderr)
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


@dataclass(frozen=True)
class Standing:
    """Where a bar stands, for whoever shows it.

    Args:
        what: is done.
        done: steps.
        total: of them.
        note: what is worth knowing beside it.
    """

    what: str
    done: int = 0
    total: int = 0
    note: str = ""


Advance = Callable[..., None]


def report_to(listener: Callable[[Standing], None] | None) -> None:
    """Tell every bar of this process to a listener from now on, and draw none; None: draw them again."""
    global _listener
    _listener = listener


@contextmanager
def bar(description: str, total: int) -> Iterator[Advance]:
    """A bar of `total` steps; yields `advance(steps=1, note="")`. Nothing is drawn unless standard error is a terminal."""
    if _listener is not None:
        yield _told(_listener, description, total)
        return
    with _drawn() as drawn:
        if drawn is None:
            yield lambda steps=1, note="": None
            return
        task = drawn.add_task(description, total=total, note="")
        try:
            yield lambda steps=1, note="": drawn.update(task, advance=steps, note=note)
        finally:
            drawn.remove_task(task)


def _told(listener: Callable[[Standing], None], description: str, total: int) -> Advance:
    standing = Standing(description, 0, total)
    listener(standing)

    def advance(steps: int = 1, note: str = "") -> None:
        nonlocal standing
        standing = replace(standing, done=standing.done + steps, note=note)
        listener(standing)

    return advance


class Board:
    """A bar over several things that are done, and below it a line for each of those under way."""

    def __init__(self, drawn: Any, description: str, total: int) -> None:
        self._drawn, self._lines = drawn, dict[str, Any]()
        self._whole = drawn and drawn.add_task(description, total=total, note="")

    @property
    def seen(self) -> bool:
        """Whether anybody is looking."""
        return self._drawn is not None

    def advance(self, steps: int = 1) -> None:
        """So many more are done."""
        if self._drawn:
            self._drawn.update(self._whole, advance=steps)

    def show(self, name: str, standing: Standing) -> None:
        """Where one of them stands."""
        if not self._drawn:
            return
        if name not in self._lines:
            self._lines[name] = self._drawn.add_task("", total=None, note="")
        words, total = f"  {name}: {standing.what}", standing.total or None
        self._drawn.update(
            self._lines[name], description=words, total=total, completed=standing.done, note=standing.note
        )

    def drop(self, name: str) -> None:
        """One that is under way no more."""
        if name in self._lines:
            self._drawn.remove_task(self._lines.pop(name))


@contextmanager
def board(description: str, total: int) -> Iterator[Board]:
    """A bar of `total` things, with lines below it; nothing is drawn unless standard error is a terminal."""
    with _drawn() as drawn:
        yield Board(drawn, description, total)


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
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
    from rich.table import Column
    from rich.text import Text

    class Left(TimeRemainingColumn):
        """What a bar is noted with, which says what is left of the whole; else what is left of the bar."""

        def render(self, task: Any) -> Text:
            return Text(task.fields["note"]) if task.fields["note"] else super().render(task)

    columns = (
        TextColumn("{task.description}", markup=False),
        SpinnerColumn("line"),  # moves however long a step takes
        BarColumn(bar_width=16),  # so that what is left has room in 80 columns
        MofNCompleteColumn(),
        Left(table_column=Column(no_wrap=True, overflow="ellipsis")),
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
