"""The same image twice, exactly or nearly: in two sets of a split the figures would be wrong, in one set it is only odd."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from ulna.data.layout.dataset import Dataset
from ulna.data.layout.splitting import Groups, united
from ulna.data.quality.scan import CaseStats
from ulna.data.quality.similarity import MOST_IMAGES, alike
from ulna.errors import Problem, counted

_REMEDY = "keep copies of an image in one set, or take one out"


class Duplicates(NamedTuple):
    """What was found.

    Args:
        groups: cases that show the same image; a split that ulna makes keeps each group in one set.
        problems: copies that stand in two sets of a given split.
        notes: copies in one set.
    """

    groups: Groups
    problems: list[Problem]
    notes: list[str]


def find_duplicates(dataset: Dataset, scans: Sequence[CaseStats]) -> Duplicates:
    """Compare all images of a data set with each other."""
    told = [one for one in scans if one.digest and not one.constant]  # empty slices are alike, and no leak
    exact: dict[str, list[str]] = {}
    for one in told:
        exact.setdefault(one.digest, []).append(one.case)
    same = [cases for cases in exact.values() if len(cases) > 1]
    firsts = {cases[0] for cases in exact.values()}
    near = alike({one.case: one.thumbnail for one in told if one.thumbnail is not None and one.case in firsts})
    problems = _crossing(dataset, same, "the same image as") + _crossing(dataset, near, "nearly the same image as")
    notes = []
    if len(told) > MOST_IMAGES:
        notes.append(f"nearly equal images are not looked for among more than {MOST_IMAGES}; exact copies are")
    groups = united([*same, *near])
    if groups and max(map(len, groups)) > len(told) // 2:  # a film, not copies: a split must remain possible
        notes.append(
            f"{max(map(len, groups))} of {counted(len(told), 'image')} run into one another; name the groups in groups.json"
        )
        groups = united(same)
    standing = _noted(same, "more than once", dataset) + _noted(near, "nearly the same as another", dataset)
    return Duplicates(groups, problems, notes + standing)


def _noted(parts: Sequence[Sequence[str]], what: str, dataset: Dataset) -> list[str]:
    """One line for the copies that stand in one set of a given split, or where ulna makes the split."""
    sets = _sets(dataset)
    inside = [part for part in parts if not _standings(sets, part)]
    if not inside:
        return []
    kept = "" if dataset.given_splits else "; a split that ulna makes keeps them in one set"
    return [f"{counted(len(inside), 'image')} {what}, for example {' and '.join(inside[0][:2])}{kept}"]


def _crossing(dataset: Dataset, parts: Iterable[Sequence[str]], what: str) -> list[Problem]:
    by_id: Mapping[str, str] = {case.id: str(case.images[0]) for case in dataset.cases}
    sets = _sets(dataset)
    found = [standing for part in parts for standing in _standings(sets, part)[:1]]
    return [
        Problem(by_id[case], f"is {what} {other} of {its}, and stands in {own}", _REMEDY)
        for case, other, own, its in found
    ]


def _sets(dataset: Dataset) -> list[dict[str, str]]:
    """For every given split: case -> the set in which it stands."""
    return [
        {case: name for name, members in given.model_dump().items() for case in members}
        for given in dataset.given_splits
    ]


def _standings(splits: Iterable[Mapping[str, str]], cases: Sequence[str]) -> list[tuple[str, str, str, str]]:
    """Cases that stand in another set of a given split than the first: (case, first, its set, the first's set)."""
    for sets in splits:
        standing = [case for case in cases if case in sets]
        crossing = [(one, standing[0], sets[one], sets[standing[0]]) for one in standing]
        found = [entry for entry in crossing if entry[2] != entry[3]]
        if found:
            return found
    return []
