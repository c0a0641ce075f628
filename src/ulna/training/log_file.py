"""What ulna logs while a run is trained, in a file of the run."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ulna.system.progress import Lines

log = logging.getLogger("ulna")


class _LogFile(logging.Handler):
    """Lines at the end of a file; where they cannot be written, that is said once and the work goes on."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.failed = path, False
        self.setFormatter(Lines("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(self.format(record) + "\n")
        except OSError as error:
            if not self.failed:
                self.failed = True
                log.warning("%s: cannot be written (%s); the training goes on", self.path, error.strerror or error)


@contextmanager
def logged_to(path: Path) -> Iterator[None]:
    """Everything that ulna logs while this runs also goes to the run's log.txt."""
    handler = _LogFile(path)
    log.addHandler(handler)
    level = log.level
    log.setLevel(min(level or logging.INFO, logging.INFO))  # also when called from a script that set no level
    try:
        yield
    finally:
        log.setLevel(level)
        log.removeHandler(handler)
