"""Names that every system can keep, and splits in which no case and no patient stands twice."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ulna.data.formats.source import MOST_NAME_BYTES, case_name, composed, id_problem
from ulna.data.layout.dataset import Dataset
from ulna.data.layout.metadata import read_json, split_file

_SETS = ("test", "val", "train")  # who keeps a case that stands in several
Folds = list[dict[str, list[str]]]


def safe_names(ids: Iterable[str]) -> dict[str, str]:
    """Id -> a name that can be a file everywhere; those that can already, keep theirs.

    Example:
        >>> safe_names(["a", "A", "b/c ", "b_c"])
        {'a': 'a', 'A': 'A-2', 'b/c ': 'b_c-2', 'b_c': 'b_c'}
    """
    ids = list(ids)
    names: dict[str, str] = {}
    taken: set[str] = set()
    for id in sorted(ids, key=lambda id: id_problem("", id) is not None):  # the sound ones choose first
        name, number = _safe(id), 1
        while name.casefold() in taken:
            number += 1
            name = f"{_safe(id)}-{number}"
        taken.add(name.casefold())
        names[id] = name
    return {id: names[id] for id in ids}


def _safe(id: str) -> str:
    if id_problem("", id) is None:
        return id
    name = "".join(sign if sign.isprintable() and sign not in "/\\" else "_" for sign in id).strip(" .") or "case"
    if len(name.encode()) <= MOST_NAME_BYTES:
        return name
    kept = name.encode()[: MOST_NAME_BYTES - 20].decode("utf-8", "ignore")
    return f"{kept}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def fixed_folds(dataset: Dataset, names: Mapping[str, str]) -> tuple[Folds, list[str]]:
    """What `splits.json` (or the names of npz files) wants, as far as it can be; and what was changed.

    Args:
        dataset: its cases grouped by patient and by copies.
        names: id -> name in the repaired data set, for the cases that it holds.
    """
    given = [given.model_dump() for given in dataset.given_splits] or _as_written(dataset.root)
    group = {case.id: case.group or f"case {case.id}" for case in dataset.cases}
    changes: list[str] = []
    folds = [_one_fold(fold, names, group, changes) for fold in given]
    if any(not fold["train"] for fold in folds):
        return [], [*changes, "the split has no train left; ulna makes one"]
    return folds, list(dict.fromkeys(changes))


def _as_written(root: Path) -> list[dict[str, Any]]:
    path = split_file(root)
    value = read_json(path, []) if path is not None and path.is_file() else None
    folds = value if isinstance(value, list) else [value]
    return [fold for fold in folds if isinstance(fold, Mapping) and isinstance(fold.get("train"), list)]  # type: ignore[misc]


def _one_fold(
    fold: Mapping[str, Any], names: Mapping[str, str], group: Mapping[str, str], changes: list[str]
) -> dict[str, list[str]]:
    held: dict[str, str] = {}  # group -> the set that keeps it
    taken: set[str] = set()
    sets: dict[str, list[str]] = {}
    for name in _SETS:
        sets[name] = []
        for written in _ids(fold.get(name, ())):
            id = written if written in names else case_name(written)
            if id not in names:
                changes.append(f"{written!r} was taken out of {name}: it is not in this copy")
            elif id in taken:
                changes.append(f"{id!r} was taken out of {name}: it stands in {held[group[id]]} too")
            elif held.setdefault(group[id], name) != name:
                what = f"the group {group[id]!r} stands in {held[group[id]]} too"
                changes.append(f"{id!r} was taken out of {name}: {what}")
            else:
                taken.add(id)
                sets[name].append(names[id])
                if written != id:
                    changes.append(f"{written!r} in {name} became {id!r}")
    return {name: sets[name] for name in reversed(_SETS)}


def _ids(value: Any) -> Sequence[str]:
    return (
        [composed(str(one)) for one in value if isinstance(one, str | int)] if isinstance(value, list | tuple) else ()
    )
