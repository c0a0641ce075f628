"""`groups.json`: the patient of every case, and fields by which scores are told apart, such as site or scanner.

{"case1": "p1", "case2": {"patient": "p2", "site": "A", "scanner": "GE"}}
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ulna.data.formats.source import case_name, composed
from ulna.data.layout.metadata import read_json
from ulna.errors import Problem, brief, counted

GROUPS_FILE = "groups.json"
PATIENT = "patient"
LONGEST = 200  # characters of a field and of a group
MOST_FIELDS = 20
_FORM = 'write {"case id": "patient"} or {"case id": {"patient": "p1", "site": "A"}}'


class Grouping(NamedTuple):
    """What the file says of the cases of a data set.

    Args:
        patients: case -> patient, where it is named.
        fields: case -> field -> group, of the other fields; a case without any is left out.
    """

    patients: dict[str, str]
    fields: dict[str, dict[str, str]]


def read_groups(root: Path, ids: Sequence[str], problems: list[Problem], notes: list[str]) -> Grouping:
    """The groups of these cases; none where there is no such file. What is wrong is added to the problems."""
    path = root / GROUPS_FILE
    if not os.path.lexists(path):  # a pipe or a broken link of that name is a fault
        return Grouping({}, {})
    value = read_json(path, problems)
    if value is None:
        return Grouping({}, {})
    if not isinstance(value, Mapping):
        problems.append(Problem(str(path), "does not name one patient per case", _FORM))
        return Grouping({}, {})
    found = [Problem(str(path), what, remedy) for case, entry in value.items() for what, remedy in _wrong(case, entry)]
    problems += found
    if found:
        return Grouping({}, {})
    value = {composed(key): entry for key, entry in value.items()}
    known = set(ids)
    files = [key for key in value if key not in known and case_name(key) in known]
    if files:
        what = f"names {counted(len(files), 'file')} in place of case ids, for example {files[0]!r}"
        problems.append(Problem(str(path), what, f"write ids without extension, such as {case_name(files[0])!r}"))
    elif value and ids and not known & set(value):
        what = f"names no case of the data set: its first entry is {next(iter(value))!r}, the first case {ids[0]!r}"
        problems.append(Problem(str(path), what, _FORM))
    foreign, alone = [key for key in value if key not in known], [case for case in ids if case not in value]
    if foreign:
        notes.append(f"groups.json names {counted(len(foreign), 'id')} of no case, for example {foreign[0]}")
    if alone:
        notes.append(
            f"groups.json leaves out {counted(len(alone), 'case')}, for example {alone[0]}: each is a group of its own"
        )
    entries = {case: _fields(entry) for case, entry in value.items() if case in known}
    patients = {case: fields.pop(PATIENT) for case, fields in entries.items() if PATIENT in fields}
    if unnamed := [case for case in entries if isinstance(value[case], Mapping) and case not in patients]:
        notes.append(
            f"groups.json names no patient of {counted(len(unnamed), 'case')}, for example {unnamed[0]}: each is a patient"
        )
    return Grouping(patients, {case: fields for case, fields in entries.items() if fields})


def _wrong(case: str, entry: Any) -> Iterator[tuple[str, str]]:
    """What is wrong with an entry, and what to do: at most one thing a field."""
    shown = brief(case)
    if isinstance(entry, list):
        yield f"the entry of {shown} is a list, not one patient", _FORM
        return
    if isinstance(entry, Mapping) and not entry:
        yield f"the entry of {shown} has no fields", "name its patient, or take it out"
        return
    if isinstance(entry, Mapping) and len(entry) > MOST_FIELDS:
        yield f"the entry of {shown} has {len(entry)} fields", f"keep at most {MOST_FIELDS}"
        return
    for field, group in entry.items() if isinstance(entry, Mapping) else ((PATIENT, entry),):
        if isinstance(entry, Mapping) and (not field.strip() or len(field) > LONGEST):
            yield (
                f"the entry of {shown} has a field named {brief(field)}",
                f"give it a name of 1 to {LONGEST} characters",
            )
        elif isinstance(group, Mapping | list) or (isinstance(group, bool) and isinstance(entry, Mapping)):
            yield f"{field!r} of {shown} is {brief(group)}", "write text or a number, or null where it is not known"
        elif isinstance(group, str) and len(group) > LONGEST:
            yield f"{field!r} of {shown} has {len(group)} characters", f"shorten it to {LONGEST} at most"


def _fields(entry: Any) -> dict[str, str]:
    """Field -> group; what is null is not known."""
    fields = entry if isinstance(entry, Mapping) else {PATIENT: entry}
    return {composed(field): str(group) for field, group in fields.items() if group is not None}
