"""All cases of a data set, read once, as many at a time as there are processors and as the memory holds."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from ulna.data.formats.limits import memory, room
from ulna.data.layout.case import Case
from ulna.data.layout.dataset import Dataset
from ulna.data.quality.scan import CaseStats, scan_case
from ulna.recipe import Labels
from ulna.system.ahead import ahead
from ulna.system.cores import PARENT, granted_cores
from ulna.system.progress import bar, track
from ulna.system.trees import stamp

MOST_READERS = 8  # more wait for a disk
HELD = 4  # bytes that a case takes for one of its image while it is looked through: 1.1 to 2.5 were measured
HELD_LABELS = 6  # for every voxel and map of labels: stored values, classes, where they are known
SHARE = 0.25  # of the memory, for all that are read at once: what a file unpacks to is guessed


def scan_dataset(dataset: Dataset, readers: int | None = None) -> list[CaseStats]:
    """Read every case once, in the order of the data set.

    Files that could be 2D or 3D are what the others are: in a data set of volumes they are read again, as volumes.

    Args:
        dataset: its cases.
        readers: threads, of which each reads a case; left out, see `reader_count`.
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
    """Threads that read a data set: one a processor, no more than torch computes with where it was told so.

    One alone with `--max-ram`, which counts one case at a time, and in a job of others, which share the memory.
    """
    if room() < math.inf or PARENT in os.environ:
        return 1
    torch = sys.modules.get("torch")  # which `check` does without
    count = min(MOST_READERS, granted_cores())
    return count if torch is None else min(count, int(torch.get_num_threads()))


def _each(cases: Sequence[Case], labels: Labels | None, readers: int, what: str) -> list[CaseStats]:
    scan = partial(scan_case, labels=labels)
    if readers <= 1:
        return [scan(case) for case in track(cases, what)]
    needs, found = Needs(labels), []
    # unpacking, decoding and counting release the interpreter
    with closing(ahead(scan, cases, readers, needs.of, needs.room)) as made, bar(what, len(cases)) as advance:
        for case, one in zip(cases, made, strict=True):
            found.append(one)
            needs.learn(case, one)
            advance()
    return found


class Needs:
    """What cases take while they are read: what the largest so far took, and more where a case's files are larger.

    Args:
        labels: the declared classes.

    Attributes:
        room: bytes, for all that are read at once.
    """

    def __init__(self, labels: Labels | None = None) -> None:
        self.room = SHARE * min(memory(), _granted())
        self._maps = len(labels.foreground) if labels is not None and labels.multilabel else 1
        self._most, self._stored = 0.0, 1  # the most that a case took, and that its files take
        self._sizes: dict[str, int] = {}  # of files, by case: a folder of slices is gone through once

    def of(self, case: Case) -> float:
        """Bytes; all of `room` as long as nothing is known, and for rows of a file that is unpacked once for all."""
        if not self._most or any(source.row is not None for source in case.images):
            return self.room
        return self._most * max(1.0, self._files(case) / self._stored)

    def learn(self, case: Case, found: CaseStats) -> None:
        """Take into account what a case took."""
        voxels = math.prod(found.size) if found.size else 0
        image = voxels * found.channels * np.dtype(found.dtype or "u1").itemsize
        taken = HELD * image + HELD_LABELS * voxels * self._maps
        self._most, self._stored = max(self._most, float(taken)), max(self._stored, self._files(case))
        self._sizes.pop(case.id, None)

    def _files(self, case: Case) -> int:
        if case.id not in self._sizes:
            self._sizes[case.id] = stored_bytes(case)
        return self._sizes[case.id]


def _granted() -> float:
    """Bytes that SLURM grants a job, which no file of the job's own group may tell; any number where there is no SLURM."""
    stated = (os.environ.get(name, "") for name in ("SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU", "SLURM_CPUS_ON_NODE"))
    node, core, cores = (int(text) if text.isdecimal() else 0 for text in stated)
    return (node or core * cores or math.inf) * 2**20


def stored_bytes(case: Case) -> int:
    """Of all files of a case, at least 1; those that are not there, or not within reach, count nothing."""
    sources = (*case.images, *(() if case.label is None else (case.label,)))
    return max(1, sum(_size(path) for source in sources for path in source.files))


def _size(path: Path) -> int:
    try:
        return stamp(path)[1]
    except OSError:
        return 0
