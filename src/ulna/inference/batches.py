"""Many studies at once: a folder that cannot be used fails alone and is named; a line a case says how much time is left."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ulna.data.formats.source import all_errors
from ulna.data.layout.case import Case
from ulna.data.layout.dataset import Dataset
from ulna.data.layout.dicom_tree import cases_lie_in
from ulna.errors import Problem

log = logging.getLogger(__name__)

SELDOM_S = 10.0  # between two lines, where the cases are no DICOM series
_MOST = 3  # reasons that are told of one folder


def usable(dataset: Dataset, problems: Sequence[Problem]) -> tuple[Dataset, dict[str, str]]:
    """Of a tree of DICOM studies the cases that can be predicted, and why the others cannot.

    A case is left out as a whole where anything in its folder is wrong: without a slice it may look sound.

    Returns:
        The data set without those; case, or folder in the tree, -> what is wrong and what to do.

    Raises:
        DataError: if the data set is no such tree, the fault lies in none of its folders, or no case is left.
    """
    if not problems:
        return dataset, {}
    root = cases_lie_in(dataset.root) if dataset.layout == "dicom" else dataset.root
    folders = {part for problem in problems if (part := _parts(root, problem.file)[:1])}
    if dataset.layout != "dicom" or any(not _parts(root, problem.file) for problem in problems):
        raise all_errors(problems, dataset.root)
    several = {folder for folder in folders if len({_folder(root, case, 2) for case in _in(root, dataset, folder)}) > 1}

    def place(parts: tuple[str, ...]) -> tuple[str, ...]:
        return parts[: 2 if parts[:1] in several else 1]

    wrong: dict[tuple[str, ...], list[Problem]] = {}
    for problem in problems:
        wrong.setdefault(place(_parts(root, problem.file)), []).append(problem)
    of_case = {case.id: place(_folder(root, case, 2)) for case in dataset.cases}
    kept = tuple(case for case in dataset.cases if of_case[case.id] not in wrong)
    if not kept:
        raise all_errors(problems, dataset.root)
    failed: dict[str, str] = {}
    for parts, told in wrong.items():
        ids = [id for id, own in of_case.items() if own == parts] or ["/".join(parts)]
        failed |= dict.fromkeys(ids, _reason(told))
    return replace(dataset, cases=kept), failed


def _reason(problems: Sequence[Problem]) -> str:
    more = len(problems) - _MOST
    return "; ".join(map(str, problems[:_MOST])) + (f"; and {more} more problems" if more > 0 else "")


def _parts(root: Path, file: str) -> tuple[str, ...]:
    """The folders from the root to a file."""
    try:
        return Path(os.path.normpath(file)).relative_to(os.path.normpath(root)).parts
    except ValueError:
        return ()


def _folder(root: Path, case: Case, deep: int) -> tuple[str, ...]:
    return _parts(root, str(case.images[0].files[0].parent))[:deep]


def _in(root: Path, dataset: Dataset, folder: tuple[str, ...]) -> list[Case]:
    return [case for case in dataset.cases if _folder(root, case, 1) == folder]


class Pace:
    """Says of every case that it is done, and about how long the others will take.

    Args:
        total: how many are to be done.
        every: a line for every one of them; else one in ten seconds.
    """

    def __init__(self, total: int, *, every: bool) -> None:
        self.total, self.every, self.number = total, every, 0
        self._start = time.perf_counter()
        self._told = self._start
        self._lock = threading.Lock()  # masks are written beside the next case

    def done(self, case: str, said: str) -> None:
        """Count a case, and tell it: what became of it."""
        with self._lock:
            self.number += 1
            now = time.perf_counter()
            if self.total < 2 or not (self.every or now - self._told >= SELDOM_S):
                return
            self._told = now
            left = (now - self._start) / self.number * (self.total - self.number)
            log.info("%d of %d: %s: %s%s", self.number, self.total, case, said, in_words(left))


def in_words(left_s: float) -> str:
    """How long the rest takes, as the end of a line; nothing where it is done.

    Example:
        >>> in_words(42), in_words(200), in_words(8000)
        ('; about 42 s left', '; about 3 min left', '; about 2.2 h left')
    """
    if left_s <= 0:
        return ""
    if left_s < 90:
        return f"; about {max(1, round(left_s))} s left"
    return f"; about {left_s / 60:.0f} min left" if left_s < 5400 else f"; about {left_s / 3600:.1f} h left"
