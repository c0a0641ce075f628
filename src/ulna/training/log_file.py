"""log.txt of a run: what ulna logs while it trains, as it may be passed on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ulna.system.passed_on import Shown
from ulna.system.progress import Lines

log = logging.getLogger("ulna")


class LogFile(logging.Handler):
    """Lines at the end of a file; where they cannot be written, that is said once and the work goes on.

    Args:
        path: the file.
        shown: how lines are written into what is passed on.
    """

    def __init__(self, path: Path, shown: Shown) -> None:
        super().__init__()
        self.path, self.shown, self.failed = path, shown, False
        self.setFormatter(Lines("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(self.shown(self.format(record)) + "\n")
        except OSError as error:
            if not self.failed:
                self.failed = True
                log.warning("%s: cannot be written (%s); the training goes on", self.path, error.strerror or error)


@contextmanager
def logged_to(path: Path, shown: Shown) -> Iterator[None]:
    """Everything that ulna logs while this runs also goes to the run's log.txt."""
    handler = LogFile(path, shown)
    log.addHandler(handler)
    level = log.level
    log.setLevel(min(level or logging.INFO, logging.INFO))  # also when called from a script that set no level
    try:
        yield
    finally:
        log.setLevel(level)
        log.removeHandler(handler)
