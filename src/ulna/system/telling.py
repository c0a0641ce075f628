"""Where the work of another process stands: it leaves that in a small file, which whoever began it reads."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from ulna.errors import UsageError, printable
from ulna.system.progress import Standing
from ulna.system.reading import read_json_object

EVERY_S = 0.5  # a file is written


class Teller:
    """Listens to the bars of this process, and leaves where they stand in a file: the newest one, whole or not at all.

    A file that cannot be written stops no work.

    Args:
        path: of the file.
        clock: seconds from any moment on.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock = path, clock
        self._written, self._what = -EVERY_S, ""

    def __call__(self, standing: Standing) -> None:
        """Note where a bar stands, unless that was done a moment ago; another bar is noted at once."""
        now = self._clock()
        if now - self._written < EVERY_S and standing.what == self._what:
            return
        self._written, self._what = now, standing.what
        beside = self._path.with_name(self._path.name + ".new")
        with suppress(OSError):  # no fsync: what is lost here is told again
            beside.write_text(json.dumps(asdict(standing)), encoding="utf-8")
            beside.replace(self._path)


def read_standing(path: Path) -> Standing | None:
    """What a `Teller` left in a file; None where there is none, or something else."""
    with suppress(OSError, UsageError, ValueError, TypeError, KeyError):
        told = read_json_object(path) if path.is_file() else {}
        return Standing(
            printable(told["what"]), max(0, int(told["done"])), max(0, int(told["total"])), printable(told["note"])
        )
    return None
