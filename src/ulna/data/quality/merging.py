"""Label values that are one class, over a whole data set: those that occur nowhere, and numbered objects."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ulna.data.layout.dataset import RECIPE, Dataset
from ulna.data.layout.declared import CLASSES_FILE
from ulna.data.quality.objects import objects_found
from ulna.data.quality.scan import CaseStats
from ulna.errors import Problem, counted, listed

MERGE_OBJECTS = (
    'write {"labels": {"1": "object"}, "instances": true} to classes.json for one class, or use check --fix OUT'
)


def numbered_objects(scans: Sequence[CaseStats]) -> str:
    """What is said where the label maps of a data set that declares no classes number objects; empty where they do not."""
    maps = {one.case: [value for value in one.label_values if value] for one in scans if one.label_values}
    return objects_found(maps, {one.case: one.objects for one in scans})


def missing_values(dataset: Dataset, scans: Sequence[CaseStats], problems: list[Problem], notes: list[str]) -> None:
    """Classes none of whose values occurs are a problem, single values that occur nowhere a note.

    Args:
        dataset: whose classes merge values.
        scans: of all cases whose label maps fit the classes.
        problems: what is wrong is added.
        notes: what is worth knowing is added.
    """
    labels = dataset.labels
    if labels is None or any(one.label_values == {} for one in scans):
        return
    held = {value for one in scans for value in one.stored}
    if not held:  # one map for every class
        return
    where = dataset.declared_in or CLASSES_FILE
    source = str(dataset.root) if where == RECIPE else str(Path(dataset.root) / where)
    subject = f"{RECIPE} " if where == RECIPE else ""
    for name, values in zip(labels.foreground, labels.stored, strict=True):
        absent = [value for value in values if value not in held]
        if len(absent) == len(values):
            whole = counted(len(scans), "case")
            what = f"{subject}makes {name!r} of the label values {listed(values)}"
            what += f", and none of them occurs in {whole}"
            found = listed(sorted(held - {0})) or "0 alone"
            problems.append(Problem(source, what, f"name values that occur: {found}"))
        elif absent:
            notes.append(
                f"{where} makes {name!r} of {listed(values)}; {listed(absent)} occur{'s' * (len(absent) == 1)} in no case"
            )
