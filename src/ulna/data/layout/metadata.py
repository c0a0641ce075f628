"""What JSON files beside the images declare: class names, channel names, patients and splits.

Every function adds what is wrong to a list of problems and goes on, so that all faults of a data set are told at once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from ulna.data.formats.source import case_name, composed, file_stat
from ulna.errors import DataError, Problem
from ulna.recipe import Labels, Split
from ulna.system.reading import LARGEST_JSON, parse_json, read_text

_CLASSES = 'write the classes as {"1": "liver", "2": "tumour"}; 0 is background'
_SPLITS = (
    'write {"train": [ids], "val": [ids], "test": [ids]}, or a list of folds [{"train": [...], "val": [...]}, ...]'
)
_SETS = ("train", "val", "test")
_SHOWN = 6  # values in a message


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


def read_classes(root: Path, problems: list[Problem]) -> Labels | None:
    """The classes of `classes.json`: a dict, a list, or either under `labels` beside `mode`."""
    path = root / "classes.json"
    if not os.path.lexists(path):  # a pipe or a broken link of that name is a fault
        return None
    value = read_json(path, problems)
    if not isinstance(value, Mapping):
        return parse_classes(value, None, path, problems) if value is not None else None
    mode = value.get("mode")
    named = value.get("labels", value.get("classes"))
    if not isinstance(named, Mapping | list):
        named = {key: name for key, name in value.items() if key != "mode"}
    return parse_classes(named, mode, path, problems)


def parse_classes(value: Any, mode: Any, path: Path, problems: list[Problem]) -> Labels | None:
    """Class names from a list, {"1": "liver"} or {"liver": 1}; None, and a problem, where they make no sense."""
    try:
        return _labels(value, mode)
    except _NonsenseError as nonsense:
        problems.append(Problem(str(path), nonsense.what, nonsense.remedy))
        return None


class _NonsenseError(Exception):
    def __init__(self, what: str, remedy: str = _CLASSES) -> None:
        self.what, self.remedy = what, remedy
        super().__init__(what)


def _labels(value: Any, mode: Any) -> Labels:
    if mode not in (None, "multilabel", "exclusive", "multiclass"):
        raise _NonsenseError(f"has the mode {mode!r}", "leave `mode` out for exclusive classes, or write multilabel")
    multilabel = mode == "multilabel"
    by_value = _by_value(value)
    if multilabel and 0 in by_value and by_value[0].lower() != "background":
        by_value = {number + 1: name for number, name in by_value.items()}  # counted from 0: there is no background
    by_value.setdefault(0, "background")
    if min(by_value) < 0 or max(by_value) != len(by_value) - 1:
        raise _skipping(by_value)
    names = [by_value[number] for number in sorted(by_value)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise _NonsenseError(f"gives the name {twice[0]!r} to two classes")
    if len(names) < 2:
        raise _NonsenseError("declares the background only")
    return Labels(names=tuple(names[1:] if multilabel else names), multilabel=multilabel)


def _skipping(by_value: Mapping[int, str]) -> _NonsenseError:
    missing = islice((number for number in range(max(by_value)) if number not in by_value), _SHOWN + 1)
    skipped = "below 0" if min(by_value) < 0 else _listed(missing)
    what = f"declares the label values {_listed(sorted(by_value))}, which skip {skipped}"
    if set(by_value) == {0, 255}:
        return _NonsenseError(
            what, f'write {{"1": {json.dumps(by_value[255])}}}; masks of 0 and 255 are read as 0 and 1'
        )
    return _NonsenseError(what)


def _listed(values: Iterable[int]) -> str:
    shown = [str(value) for value in islice(values, _SHOWN + 1)]
    return f"[{', '.join(shown[:_SHOWN])}{', ...' if len(shown) > _SHOWN else ''}]"


def _by_value(value: Any) -> dict[int, str]:
    """Label value -> name. A list counts from 1, or from 0 where it begins with the background."""
    if isinstance(value, list) and value:
        names = [str(name) for name in value]
        return dict(enumerate(names, start=0 if names[0].lower() == "background" else 1))
    if not isinstance(value, Mapping) or not value:
        raise _NonsenseError("declares no classes")
    if any(isinstance(entry, list) for entry in value.values()):
        raise _NonsenseError(
            "declares regions (lists of values) as labels", "give every class one value, or use multilabel"
        )
    by_key, by_entry = [_whole(key) for key in value], [_whole(entry) for entry in value.values()]
    if None not in by_key:
        numbers, names = by_key, [str(name) for name in value.values()]
    elif None not in by_entry:
        numbers, names = by_entry, [str(name) for name in value]
    else:
        raise _NonsenseError("has labels that name no values")
    if len(set(numbers)) < len(numbers):
        raise _NonsenseError("gives one label value to two classes")
    if "ignore" in names:
        raise _NonsenseError("declares an `ignore` label, which is not read", "remap the label maps without it")
    return {number: name for number, name in zip(numbers, names, strict=True) if number is not None}


def _whole(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    try:
        return int(value) if isinstance(value, int | str) or float(value).is_integer() else None
    except (TypeError, ValueError):
        return None


def parse_channels(value: Any) -> tuple[str, ...] | None:
    """Channel names from {"0": "T1", "1": "T2"} or a list; None where there are none."""
    if isinstance(value, Mapping) and value and None not in [_whole(key) for key in value]:
        return tuple(str(value[key]) for key in sorted(value, key=lambda key: _whole(key) or 0))
    return tuple(str(name) for name in value) if isinstance(value, list) and value else None


def read_groups(root: Path, ids: Sequence[str], problems: list[Problem], notes: list[str]) -> dict[str, str]:
    """`groups.json`: case id -> patient."""
    path = root / "groups.json"
    if not os.path.lexists(path):  # a pipe or a broken link of that name is a fault
        return {}
    value = read_json(path, problems)
    if value is None:
        return {}
    if not isinstance(value, Mapping) or any(isinstance(group, Mapping | list) for group in value.values()):
        problems.append(Problem(str(path), "does not name one patient per case", 'write {"case id": "patient"}'))
        return {}
    value = {composed(key): group for key, group in value.items()}
    known = set(ids)
    files = [key for key in value if key not in known and case_name(key) in known]
    if files:
        what = f"names {len(files)} files in place of case ids, for example {files[0]!r}"
        problems.append(Problem(str(path), what, f"write ids without extension, such as {case_name(files[0])!r}"))
    elif value and ids and not known & set(value):
        what = f"names no case of the data set: its first entry is {next(iter(value))!r}, the first case {ids[0]!r}"
        problems.append(Problem(str(path), what, 'write {"case id": "patient"}'))
    foreign, alone = [key for key in value if key not in known], [case for case in ids if case not in value]
    if foreign:
        notes.append(f"groups.json names {len(foreign)} ids that are no case, for example {foreign[0]}")
    if alone:
        notes.append(f"groups.json leaves out {len(alone)} cases, for example {alone[0]}: each is a group of its own")
    return {case: str(group) for case, group in value.items() if case in known and group is not None}


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
        notes.append(f"{path.name} leaves out {len(idle)} labelled cases, for example {idle[0]}")
    if len(splits) > 1:
        notes.append(f"{path.name} lists {len(splits)} folds; without a choice the first is used")
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
