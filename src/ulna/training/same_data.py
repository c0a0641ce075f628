"""A training goes on with the data that it began with: every case is known by a digest of its files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from ulna.data.formats.source import beside
from ulna.data.layout.case import Case
from ulna.data.layout.dataset import Dataset
from ulna.errors import UsageError, counted, listed, printable
from ulna.recipe import Labels
from ulna.system.outputs import file_digest
from ulna.system.progress import track
from ulna.system.reading import read_json_object

DATA_FILE = "data.json"
_SHOWN = 6  # ids in a message


def digests(cases: tuple[Case, ...]) -> dict[str, str]:
    """Case id -> a digest of its image and label files, to the byte; every file is read once."""
    known: dict[Path, str] = {}
    return {case.id: _digest(case, known) for case in track(cases, "comparing data")}


def _digest(case: Case, known: dict[Path, str]) -> str:
    whole = hashlib.sha256()
    for source in (*case.images, *((case.label,) if case.label else ())):
        for path in source.files:
            if path not in known:
                known[path] = _of_file(path)
            whole.update(f"{known[path]} {source.row}\n".encode())
    return whole.hexdigest()[:32]


def _of_file(path: Path) -> str:
    """Of a file, or of all in a folder of masks that are one label map."""
    try:
        inside = path.is_dir() and sorted(one for one in path.iterdir() if not beside(one.name) and one.is_file())
        return file_digest(*(inside or [path]))
    except OSError as error:
        why = error.strerror or "it is no file"
        raise UsageError(f"{printable(path)}: cannot be read ({why}); check the path") from None


def describe(dataset: Dataset, labels: Labels) -> str:
    """What `data.json` of a run holds: the digests of all cases of the data set, and the classes."""
    facts = {"classes": list(labels.names), "cases": digests(dataset.cases)}
    return json.dumps(facts, indent=1)


def check_same(folder: Path, data: Path, dataset: Dataset, labels: Labels) -> None:
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
    now = digests(dataset.cases)
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
