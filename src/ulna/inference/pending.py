"""Which masks `predict` has to make: not those that are there as they would be made, and never in place of others' files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ulna.data.layout.case import Case
from ulna.data.layout.record import Entry, Record
from ulna.errors import MOST_LINES, UsageError, listed
from ulna.system.outputs import file_digest, ignores_case


class Pending(NamedTuple):
    """What is done already and what is to be done.

    Args:
        done: case -> its mask, which is skipped.
        todo: case -> what is to be made.
        kept: npz file -> the masks in it that stay when others join them.
    """

    done: dict[str, Entry]
    todo: dict[str, Entry]
    kept: dict[str, list[Entry]]


def find_pending(record: Record, cases: Sequence[Case], wanted: Mapping[str, Entry], *, overwrite: bool) -> Pending:
    """Compare what is to be made with what is there.

    Args:
        record: of the output folder.
        cases: of this call.
        wanted: case -> its entry as it is to be made, without digests.
        overwrite: whether ulna's own masks of another run, other options or another image may be replaced.

    Raises:
        UsageError: with every file that is in the way.
    """
    _check_doubles(record.folder, cases, wanted)
    found = Pending({}, {}, {})
    digests: dict[tuple[Path, ...], str] = {}
    in_the_way: dict[str, str] = {}  # name -> why it may not be replaced; empty where it may
    for case in cases:
        entry = wanted[case.id]
        present = [name for name in entry.files if os.path.lexists(record.folder / name)]
        if not all(record.owns(name) or record.undigested(name) for name in present):
            record.hear()  # a job of an earlier call may have put it in place since
        if present:
            paths = tuple(file for source in case.images for file in source.files)
            if paths not in digests:
                digests[paths] = input_digest(paths)
            entry = replace(entry, input=digests[paths])
            same = record.find(entry)
            if same is not None:
                found.done[case.id] = same
                continue
        found.todo[case.id] = entry
        for name in present:
            if name not in in_the_way:
                in_npz = case.images[0].row is not None and name == entry.file
                in_the_way[name] = _why_not(record, name, entry, overwrite, found.kept if in_npz else None)
    reasons: dict[str, list[str]] = {}
    for name, why in in_the_way.items():
        if why:
            reasons.setdefault(why, []).append(name)
    if reasons:
        lines = "\n".join(f"  {listed(names)}: {why}" for why, names in reasons.items())
        raise UsageError(f"{record.folder}: holds what stands in the way; nothing was predicted\n{lines}")
    return found


def input_digest(paths: Sequence[Path]) -> str:
    """The digest of the files of an image; empty text where one cannot be read."""
    try:
        return file_digest(*paths)
    except OSError:  # what is wrong is told when the case is read
        return ""


def _why_not(record: Record, name: str, entry: Entry, overwrite: bool, kept: dict[str, list[Entry]] | None) -> str:
    """Why a file may not be replaced; nothing where it may be."""
    if record.owns(name):
        same = record.of_file(name)
        different = {
            "another run": any(one.run != entry.run for one in same),
            "other options": any(one.options != entry.options for one in same),
            "another image": any(one.input != entry.input for one in same),
        }
        if not any(different.values()):  # a part is missing: another file of the case, or other rows of the npz
            if kept is not None:
                kept[name] = same
            return ""
        if overwrite:
            return ""
        return f"of {' and '.join(what for what, yes in different.items() if yes)}; --overwrite predicts again"
    if record.undigested(name):
        return "" if overwrite else "of an earlier version of ulna, which kept no digests; --overwrite predicts again"
    return "not written by ulna, or changed since; move what is yours, or choose another --out"


def _check_doubles(folder: Path, cases: Sequence[Case], wanted: Mapping[str, Entry]) -> None:
    """Refuse two cases whose files would have one name."""
    owners: dict[str, dict[str, str]] = {}  # name without its letters' case -> (what is written, its name)
    for case in cases:
        entry = wanted[case.id]
        for name in entry.files:
            shared = case.images[0].row is not None and name == entry.file
            owners.setdefault(name.casefold(), {})[f"file {name}" if shared else f"{name} of case {case.id}"] = name
    twins = [list(of) for of in owners.values() if len(of) > 1 and _is_one_name(of, folder)]
    if twins:
        lines = "\n".join(f"  {' and '.join(of)}" for of in twins[:MOST_LINES])
        raise UsageError(f"{folder}: files of several cases would have one name there; rename the cases\n{lines}")


def _is_one_name(owners: Mapping[str, str], folder: Path) -> bool:
    """Whether names that differ in nothing but the case of their letters are one name in a folder."""
    if len(set(owners.values())) < len(owners):
        return True
    try:
        return ignores_case(next((place for place in (folder, *folder.parents) if place.is_dir()), Path()))
    except OSError:  # that it cannot be written to is told later
        return False
