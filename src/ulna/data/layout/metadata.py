"""What JSON files beside the images declare: channel names and splits; `declared.py` has the classes, `groups.py` the
patients.

Every function adds what is wrong to a list of problems and goes on, so that all faults of a data set are told at once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ulna.data.formats.source import case_name, composed, file_stat
from ulna.errors import DataError, Problem, counted
from ulna.recipe import Split
from ulna.system.reading import LARGEST_JSON, parse_json, read_text

_SPLITS = (
    'write {"train": [ids], "val": [ids], "test": [ids]}, or a list of folds [{"train": [...], "val": [...]}, ...]'
)
_SETS = ("train", "val", "test")


def read_json(path: Path, problems: list[Problem]) -> Any:
    """The content of a JSON file; None, and a problem, where it cannot be read."""
    try:
        file_stat(path)
    except DataError as error:
        problems += error.problems
        return None
    try:
        return parse_json(read_text(path, LARGEST_JSON), str(path), _once)
    except DataError as error:
        problems += [problem._replace(remedy="repair the file or take it out") for problem in error.problems]
        return None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, in which no key stands twice: of two, readers keep one without a word."""
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [key for key, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands in one object twice")
    return value


def whole(value: Any) -> int | None:
    """A whole number, also as text; None for anything else."""
    if isinstance(value, bool):
        return None
    try:
        return int(value) if isinstance(value, int | str) or float(value).is_integer() else None
    except (TypeError, ValueError):
        return None


def parse_channels(value: Any) -> tuple[str, ...] | None:
    """Channel names from {"0": "T1", "1": "T2"} or a list; None where there are none."""
    if isinstance(value, Mapping) and value and None not in [whole(key) for key in value]:
        return tuple(str(value[key]) for key in sorted(value, key=lambda key: whole(key) or 0))
    return tuple(str(name) for name in value) if isinstance(value, list) and value else None


SPLIT_FILES = ("splits.json", "splits_final.json")  # the second is nnU-Net's


def split_file(folder: Path) -> Path | None:
    """The file that says the split: `splits.json`, else nnU-Net's `splits_final.json`; None without either."""
    # lexists: a pipe or a broken link of that name is a fault
    return next((folder / name for name in SPLIT_FILES if os.path.lexists(folder / name)), None)


def read_splits(
    path: Path, labelled: Mapping[str, bool], groups: Mapping[str, str], problems: list[Problem], notes: list[str]
) -> tuple[Split, ...]:
    """`splits.json`, or a file in its form: one split, or several folds.

    Args:
        path: the file.
        labelled: every case id, and whether it has a label map.
        groups: case id -> patient.
    """
    before = len(problems)
    value = read_json(path, problems)
    if value is None:
        return ()
    folds = value if isinstance(value, list) else [value]
    if not folds or not all(isinstance(fold, Mapping) and "train" in fold for fold in folds):
        problems.append(Problem(str(path), "holds no split with a `train` list", _SPLITS))
        return ()
    foreign = sorted({str(key) for fold in folds for key in fold if key not in _SETS})
    if foreign:
        notes.append(f"{path.name}: {', '.join(foreign)} not used")
    splits = []
    for number, fold in enumerate(folds):
        where = f"{path}" if not isinstance(value, list) else f"{path}, fold {number}"
        sets = _sets(fold, where, problems)
        check_split(sets, where, labelled, groups, problems)
        splits.append(sets)
    if len(problems) > before:
        return ()
    used = {case for sets in splits for members in sets.values() for case in members}
    idle = [case for case, has_label in labelled.items() if has_label and case not in used]
    if idle:
        notes.append(f"{path.name} leaves out {counted(len(idle), 'labelled case')}, for example {idle[0]}")
    if len(splits) > 1:
        notes.append(f"{path.name} lists {counted(len(splits), 'fold')}; without a choice the first is used")
    if not all(sets["val"] for sets in splits):
        notes.append(f"{path.name} names no val: 15 % of train are taken to choose the epoch")
    return tuple(Split(**{name: tuple(members) for name, members in sets.items()}) for sets in splits)


def _sets(fold: Mapping[str, Any], where: str, problems: list[Problem]) -> dict[str, list[str]]:
    sets: dict[str, list[str]] = {}
    for name in _SETS:
        members = fold.get(name, [])
        if not isinstance(members, list) or not all(isinstance(case, str | int) for case in members):
            problems.append(Problem(where, f"`{name}` is no list of ids", _SPLITS))
            members = []
        sets[name] = [composed(str(case)) for case in members]
    return sets


def check_split(
    sets: Mapping[str, Sequence[str]],
    where: str,
    labelled: Mapping[str, bool],
    groups: Mapping[str, str],
    problems: list[Problem],
) -> None:
    """Find ids that do not exist, have no label, stand twice, and patients that stand in two sets."""
    if not sets["train"]:
        problems.append(Problem(where, "`train` is empty", _SPLITS))
    for name, members in sets.items():
        for case in members:
            if case not in labelled:
                hint = "write ids without extension" if case_name(case) in labelled else "take the id out"
                problems.append(Problem(where, f"`{name}` names {case!r}, which is no case of the data set", hint))
            elif not labelled[case]:
                problems.append(Problem(where, f"`{name}` names {case!r}, which has no label map", "take the id out"))
    standing: dict[str, list[str]] = {}
    patients: dict[str, set[str]] = {}
    for name, members in sets.items():
        for case in members:
            standing.setdefault(case, []).append(name)
            patients.setdefault(groups.get(case, ""), set()).add(name)
    for case, names in standing.items():
        if len(names) > 1:
            problems.append(Problem(where, f"{case!r} stands in {' and in '.join(names)}", "keep it in one set, once"))
    for patient, found in patients.items():
        if patient and len(found) > 1:
            what = f"cases of the group {patient!r} stand in {' and in '.join(sorted(found))}"
            problems.append(Problem(where, what, "keep all cases of a patient in one set"))
