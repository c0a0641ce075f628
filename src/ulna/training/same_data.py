"""A training goes on with the data that it began with: every case is known by a digest of its files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ulna.data.layout.case import Case
from ulna.data.layout.dataset import Dataset
from ulna.data.layout.pseudonyms import DATA_FILE
from ulna.data.prepared.contents import Contents
from ulna.errors import UsageError, counted, listed, printable
from ulna.recipe import Labels
from ulna.system.progress import track
from ulna.system.reading import read_json_object

_SHOWN = 6  # ids in a message


def digests(cases: tuple[Case, ...], contents: Contents) -> dict[str, str]:
    """Case id -> a digest of its image and label files, to the byte; every file is read once."""
    return {case.id: _digest(case, contents) for case in track(cases, "comparing data")}


def _digest(case: Case, contents: Contents) -> str:
    whole = hashlib.sha256()
    for source in (*case.images, *((case.label,) if case.label else ())):
        for path in source.files:
            whole.update(f"{contents.of(path)} {source.row}\n".encode())
    return whole.hexdigest()[:32]


def describe(dataset: Dataset, labels: Labels, contents: Contents, key: str | None = None) -> str:
    """What `data.json` of a run holds: the digests of all cases of the data set, and the classes.

    Args:
        contents: takes what is hashed.
        key: the digest of the key of the pseudonyms that stand there in place of ids.
    """
    facts: dict[str, Any] = {"classes": list(labels.names), "cases": digests(dataset.cases, contents)}
    if key is not None:
        facts["pseudonyms"] = key
    return json.dumps(facts, indent=1)


def check_same(folder: Path, data: Path, dataset: Dataset, labels: Labels, contents: Contents) -> None:
    """Raise a UsageError where a data set is not the one that a run began with; names what changed, is missing or new.

    A run without its record does not go on: nobody can say whether these are its data.
    """
    path = folder / DATA_FILE
    declared = dataset.labels
    if declared is not None and declared != labels:
        ours, planned = listed(declared.described, _SHOWN), listed(labels.described, _SHOWN)
        raise UsageError(
            f"{printable(data)}: declares the classes {ours}, but the run {printable(folder)} was planned for {planned}; "
            "give the data that it began with, or train again into another folder"
        )
    if not path.exists():
        raise UsageError(
            f"{printable(path)}: is missing, so nobody can say whether these are the data that the run began with; "
            "restore it, or train again into another folder"
        )
    stored = read_json_object(path).get("cases")
    if not isinstance(stored, dict) or not all(isinstance(value, str) for value in stored.values()):
        raise UsageError(
            f"{printable(path)}: holds no digests of cases; restore it, or train again into another folder"
        )
    now = digests(dataset.cases, contents)
    differences = {
        "changed": [name for name in stored if name in now and now[name] != stored[name]],
        "missing": [name for name in stored if name not in now],
        "new": [name for name in now if name not in stored],
    }
    told = [f"{len(ids)} {kind} ({listed(ids, _SHOWN)})" for kind, ids in differences.items() if ids]
    if told:
        raise UsageError(
            f"{printable(data)}: is not the data that the run {printable(folder)} began with: {', '.join(told)} of "
            f"{counted(len(stored), 'case')}; give those data, or train again into another folder"
        )
