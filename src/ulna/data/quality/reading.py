"""All cases of a data set, read once, as many at a time as there are processors and as the memory holds."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from ulna.data.formats.limits import memory, room
from ulna.data.formats.source import Source
from ulna.data.layout.case import Case
from ulna.data.layout.dataset import Dataset
from ulna.data.quality.scan import CaseStats, scan_case
from ulna.recipe import Labels
from ulna.system.ahead import ahead
from ulna.system.cores import granted_cores
from ulna.system.progress import bar

MOST_READERS = 8  # more wait for a disk
HELD = 4  # bytes that a case takes for one of its image while it is looked through; 1.1 to 2.5, and its label map
SHARE = 0.25  # of the memory, for all that are read at once: what a file unpacks to is guessed


def scan_dataset(dataset: Dataset, readers: int | None = None) -> list[CaseStats]:
    """Read every case once, in the order of the data set.

    Files that could be 2D or 3D are what the others are: in a data set of volumes they are read again, as volumes.

    Args:
        dataset: its cases.
        readers: threads, of which each reads a case; left out, one a processor, or one alone with `--max-ram`, which counts
            one case at a time.
    """
    readers = reader_count() if readers is None else readers
    found = _each(dataset.cases, dataset.labels, readers, "reading")
    again = [n for n, one in enumerate(found) if one.either and one.spatial_dims == 2]
    if again and any(one.spatial_dims == 3 for one in found):
        cases = [replace(dataset.cases[n], spatial_dims=3) for n in again]
        for n, one in zip(again, _each(cases, dataset.labels, readers, "reading volumes of few slices"), strict=True):
            found[n] = one
    return found


def reader_count() -> int:
    """Threads that read a data set; one with `--max-ram`."""
    return 1 if room() < math.inf else min(MOST_READERS, granted_cores())


def _each(cases: Sequence[Case], labels: Labels | None, readers: int, what: str) -> list[CaseStats]:
    needs, found = Needs(), []
    threads = readers if readers > 1 else 0
    with bar(what, len(cases)) as advance:  # unpacking, decoding and counting release the interpreter
        made = ahead(partial(scan_case, labels=labels), cases, threads, needs.of, needs.room)
        for case, one in zip(cases, made, strict=True):
            found.append(one)
            needs.learn(case, one)
            advance()
    return found


class Needs:
    """What cases take while they are read, by their files and by how large the cases before them became.

    Attributes:
        room: bytes, for all that are read at once.
    """

    def __init__(self) -> None:
        self.room = SHARE * memory()
        self._growth: float | None = None  # bytes of an image for one of its case's files

    def of(self, case: Case) -> float:
        """Bytes; all of `room` as long as nothing is known, and for rows of a file that is unpacked once for all."""
        if self._growth is None or any(source.row is not None for source in case.images):
            return self.room
        return HELD * self._growth * stored_bytes(case)

    def learn(self, case: Case, found: CaseStats) -> None:
        """Take the largest growth of a file into account."""
        if found.size:
            unpacked = found.channels * math.prod(found.size) * np.dtype(found.dtype).itemsize
            self._growth = max(self._growth or 0.0, unpacked / stored_bytes(case))


def stored_bytes(case: Case) -> int:
    """Of all files of a case, at least 1; those that are not there count nothing."""
    sources = (*case.images, *(() if case.label is None else (case.label,)))
    return max(1, sum(_size(path) for source in sources for path in _files(source)))


def _files(source: Source) -> Sequence[Path]:
    if source.series is None and source.path.is_dir():
        return [Path(folder, name) for folder, _, names in os.walk(source.path) for name in names]
    return source.files


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
