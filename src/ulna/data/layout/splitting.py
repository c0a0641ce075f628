"""Which cases train, which choose the epoch, which are kept: by patient, by seed, the same every time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

import numpy as np

from ulna.data.layout.case import Case
from ulna.errors import UsageError, counted
from ulna.recipe import Split, are_counts

Groups = tuple[tuple[str, ...], ...]
Cases = dict[tuple[str, str], list[str]]  # group -> its cases
FOLDS = 5
_ENOUGH_FOR_TEST = 20  # groups; with fewer, a test set would say nothing
_VAL_OF_TRAIN = 0.15


class Division(NamedTuple):
    """How a person wants cases to be divided.

    Args:
        fold: which of the folds; None for the one split.
        folds: how many folds are made where the data set brings none; None: `FOLDS`.
        shares: of train, val and test, where the data set brings no split; or numbers of groups (`are_counts`).
        test: patterns of the ids of cases that are kept for the end, where the data set brings no split, and without a fold.
    """

    fold: int | None = None
    folds: int | None = None
    shares: tuple[float, float, float] | None = None
    test: tuple[str, ...] | None = None

    @property
    def made_folds(self) -> int:
        """How many folds are made."""
        return FOLDS if self.folds is None else self.folds


AS_IT_IS = Division()


def choose_split(cases: Sequence[Case], given: Sequence[Split], seed: int, wanted: Division = AS_IT_IS) -> Split:
    """The given split or fold, else one made by group and seed.

    Args:
        cases: the labelled cases.
        given: one split, several folds, or nothing.
        seed: of what is made.
        wanted: the fold, or the shares.

    Raises:
        UsageError: if there are too few cases or groups, or no such fold.
    """
    check_divisible(cases, given, wanted)
    if given:
        return _with_val(_pick(given, wanted.fold), cases, seed)
    groups = _groups(cases)
    if wanted.fold is not None:
        return _fold(groups, seed, wanted.fold, wanted.made_folds)
    if wanted.test is not None:
        return _with_test(groups, seed, wanted)
    return _made(groups, seed) if wanted.shares is None else _shared(groups, seed, wanted.shares)


def check_divisible(cases: Sequence[Case], given: Sequence[Split], wanted: Division = AS_IT_IS) -> None:
    """Refuse what `choose_split` could not divide.

    Raises:
        UsageError: if there are too few cases or groups, or no such fold.
    """
    fold, folds = wanted.fold, wanted.made_folds
    if len(cases) < 2:
        count = "1 labelled case is" if len(cases) == 1 else "0 labelled cases are"
        raise UsageError(f"{count} too few to train: one must train and another choose the epoch")
    if given:
        _check_val(_pick(given, fold), cases)
        return
    groups = len(_groups(cases))
    if groups < 2:
        raise UsageError("all cases belong to one group: at least two are needed, see groups.json")
    if fold is not None and not 0 <= fold < folds:
        raise UsageError(f"fold {fold}: the folds are 0..{folds - 1}")
    if fold is not None and groups < folds:
        raise UsageError(f"fold {fold}: {folds} folds need {folds} groups of cases, there are {groups}")
    if fold is None and wanted.test is not None:
        groups = len(_parted(_groups(cases), wanted.test)[1])
    if fold is None and wanted.shares is not None and (parts := sum(share > 0 for share in wanted.shares)) > groups:
        raise UsageError(f"a split in {parts} parts needs {parts} groups of cases, there are {groups}")


def check_counted(cases: Sequence[Case], given: Sequence[Split], wanted: Division) -> None:
    """Refuse numbers of groups that do not add up to all of them; those that copies of an image unite count as they were.

    Raises:
        UsageError: with both sums.
    """
    if given or wanted.fold is not None or wanted.shares is None or not are_counts(wanted.shares):
        return
    groups = _groups(cases)
    count = len(groups if wanted.test is None else _parted(groups, wanted.test)[1])
    if sum(wanted.shares) != count:
        numbers = "/".join(f"{share:g}" for share in wanted.shares if share)
        besides = " beside those that are kept for the end" if wanted.test is not None else ""
        raise UsageError(
            f"the split {numbers} groups adds up to {sum(wanted.shares):g}, and there are {count} groups of cases{besides}; "
            "write shares, such as --split 80/10/10, or numbers that fit"
        )


def _parted(groups: Cases, test: Sequence[str]) -> tuple[Cases, Cases]:
    """The groups that hold a case with such an id, which are kept for the end whole, and the others.

    Raises:
        UsageError: if there is no such case, or fewer than two other groups.
    """
    kept = {
        name: members
        for name, members in groups.items()
        if any(fnmatchcase(case, pattern) for case in members for pattern in test)
    }
    told = f"training.test={json.dumps(list(test))}"
    if not kept:
        first = next(case for members in groups.values() for case in members)
        raise UsageError(
            f"{told} names no case, the first one is {first!r}; name cases that are there, or set it to null"
        )
    others = {name: members for name, members in groups.items() if name not in kept}
    if len(others) < 2:
        raise UsageError(
            f"{told} leaves {counted(len(others), 'group of cases')} to train and to choose the epoch, and two are needed; "
            "name fewer"
        )
    return kept, others


def united(parts: Iterable[Sequence[str]]) -> Groups:
    """Parts that share a member become one.

    Example:
        >>> united([("a", "b"), ("c", "d"), ("b", "e")])
        (('a', 'b', 'e'), ('c', 'd'))
    """
    first: dict[str, str] = {}  # towards the one that stands for the whole group

    def standing_for(name: str) -> str:
        while first.setdefault(name, name) != name:
            first[name] = first[first[name]]
            name = first[name]
        return name

    for part in parts:
        for name in part:
            first[standing_for(name)] = standing_for(part[0])
    groups: dict[str, list[str]] = {}
    for name in sorted(first):
        groups.setdefault(standing_for(name), []).append(name)
    return tuple(sorted(tuple(members) for members in groups.values()))


def _pick(given: Sequence[Split], fold: int | None) -> Split:
    if len(given) == 1 and fold is not None:
        raise UsageError(f"fold {fold}: the data set brings one split, not folds; leave the fold out")
    if fold is not None and not 0 <= fold < len(given):
        raise UsageError(f"fold {fold}: the data set brings the folds 0..{len(given) - 1}")
    return given[fold or 0]


def _check_val(split: Split, cases: Sequence[Case]) -> None:
    if not split.val and len(_groups_of(split.train, cases)) < 2:
        raise UsageError("the given split has no val, and its train cannot be divided: it is a single group")


def _with_val(split: Split, cases: Sequence[Case], seed: int) -> Split:
    if split.val:
        return split
    groups = _groups_of(split.train, cases)
    val, rest = _take(_shuffled(groups, seed), _VAL_OF_TRAIN * len(set(split.train)))
    return Split(train=_members(rest, groups), val=_members(val, groups), test=split.test)


def _groups_of(ids: Sequence[str], cases: Sequence[Case]) -> Cases:
    wanted = set(ids)
    return _groups([case for case in cases if case.id in wanted])


def _groups(cases: Sequence[Case]) -> Cases:
    """Group -> its cases. A case without a group is one; the kind keeps it apart from a patient of the same name."""
    groups: Cases = {}
    for case in sorted(cases, key=lambda case: case.id):
        key = ("case", case.id) if case.group is None else ("group", case.group)
        groups.setdefault(key, []).append(case.id)
    return groups


Ordered = list[tuple[tuple[str, str], int]]


def _shuffled(groups: Cases, seed: int) -> Ordered:
    names = sorted(groups)
    order = np.random.default_rng(seed).permutation(len(names))
    return [(names[i], len(groups[names[i]])) for i in order]


def _take(ordered: Ordered, cases: float, leave: int = 1) -> tuple[Ordered, Ordered]:
    """Groups from the front until they hold `cases`, at least one; at least `leave` groups stay behind."""
    taken, held = 0, 0
    while taken < len(ordered) - leave and (taken == 0 or held + ordered[taken][1] / 2 <= cases):
        held += ordered[taken][1]
        taken += 1
    return ordered[:taken], ordered[taken:]


def _members(ordered: Ordered, groups: Cases) -> tuple[str, ...]:
    return tuple(sorted(case for name, _ in ordered for case in groups[name]))


def _made(groups: Cases, seed: int) -> Split:
    """70 / 15 / 15 with 20 groups and more, else 80 / 20 without a test set."""
    ordered, total = _shuffled(groups, seed), sum(len(members) for members in groups.values())
    test: Ordered = []
    if len(groups) >= _ENOUGH_FOR_TEST:
        test, ordered = _take(ordered, 0.15 * total)
    val, train = _take(ordered, (0.15 if test else 0.2) * total)
    return Split(train=_members(train, groups), val=_members(val, groups), test=_members(test, groups))


def _shared(groups: Cases, seed: int, shares: tuple[float, float, float]) -> Split:
    """As near to the shares as whole groups come; every part has one at least."""
    ordered, total = _shuffled(groups, seed), sum(len(members) for members in groups.values())
    test: Ordered = []
    if are_counts(shares):  # where copies have united some groups, as near as the others come
        test_end, val_end = _ends(shares, len(ordered))
        parts = {"train": ordered[val_end:], "val": ordered[test_end:val_end], "test": ordered[:test_end]}
        return Split(**{name: _members(part, groups) for name, part in parts.items()})
    if shares[2]:
        test, ordered = _take(ordered, shares[2] * total, leave=2)
    val, train = _take(ordered, shares[1] * total)
    return Split(train=_members(train, groups), val=_members(val, groups), test=_members(test, groups))


def _ends(counts: tuple[float, float, float], groups: int) -> tuple[int, int]:
    """Where the groups that test end, and those that choose the epoch; each part has one at least.

    Example:
        >>> _ends((23.0, 3.0, 3.0), 29), _ends((23.0, 3.0, 3.0), 10), _ends((4.0, 1.0, 0.0), 5)
        ((3, 6), (1, 2), (0, 1))
    """
    one = groups / sum(counts)
    test = max(1, round(counts[2] * one)) if counts[2] else 0
    return test, test + max(1, round(counts[1] * one))


def _with_test(groups: Cases, seed: int, wanted: Division) -> Split:
    """Cases that are named are kept for the end, the others divided as without a test set."""
    kept, others = _parted(groups, wanted.test or ())
    parts = _shared(others, seed, wanted.shares or (1 - _VAL_OF_TRAIN, _VAL_OF_TRAIN, 0.0))
    test = sorted(case for members in kept.values() for case in members)
    return Split(train=parts.train, val=parts.val, test=tuple(test))


def _fold(groups: Cases, seed: int, fold: int, folds: int) -> Split:
    """Fold `fold` of `folds`: every case is in val of exactly one fold."""
    parts: list[Ordered] = [[] for _ in range(folds)]
    for entry in _shuffled(groups, seed):
        min(parts, key=lambda part: sum(size for _, size in part)).append(entry)
    train = [entry for number, part in enumerate(parts) if number != fold for entry in part]
    return Split(train=_members(train, groups), val=_members(parts[fold], groups))


def split_hash(split: Split) -> str:
    """Twelve hexadecimal digits that change when any case changes its set.

    Example:
        >>> split_hash(Split(train=("a", "b"), val=("c",))) == split_hash(Split(train=("b", "a"), val=("c",)))
        True
    """
    sets = {name: sorted(members) for name, members in split.model_dump().items()}
    return hashlib.sha256(json.dumps(sets, sort_keys=True).encode()).hexdigest()[:12]
