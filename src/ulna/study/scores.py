"""The figures of a study's trainings, case by case: what every table, test and drawing reads."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ulna.errors import UsageError
from ulna.evaluation.agreed import Agreed
from ulna.evaluation.metrics import FURTHER, MEASURES
from ulna.study.jobs import Job
from ulna.system.files import cell, from_cell, write_text

__all__ = ["FURTHER", "MEASURES", "Row", "further_of", "of_measure", "read_scores", "scored_twice", "write_scores"]


class Row(NamedTuple):
    """One case of one training: the mean over the classes, and every class."""

    model: str
    seed: int
    fold: int | None
    case: str
    group: str  # patient; empty where not known
    classes: str  # "mean", or the name of a class
    values: Mapping[str, float]  # measure -> figure, `MEASURES` and some of `FURTHER`; NaN where it is not defined
    image: str = ""  # the volume that `case` is a slice of, where slices are scored; its group keeps them together


def read_scores(jobs: Sequence[Job], groups: Mapping[str, str]) -> list[Row]:
    """Rows of all finished trainings; NaN where not all of them chose a measure for a class.

    Args:
        jobs: finished or not; those that are not are passed over.
        groups: case -> patient, where known; a case that is not in it is a unit of its own.

    Raises:
        UsageError: if a table is damaged.
    """
    rows: list[Row] = []
    jobs = [job for job in jobs if job.done]
    agreed = Agreed.of(job.summary() for job in jobs)
    for job in jobs:
        by_case: dict[str, list[Row]] = {}
        for row in _read(job.run / "cases.csv"):
            case, image = from_cell(row["case"]), ""
            if row.get("slice"):
                case, image = f"{case}[{row['slice']}]", case
            group = groups.get(image, image) if image else groups.get(case, "")
            values = {name: _number(row[name]) for name in (*MEASURES, *FURTHER) if name in row}
            values = agreed.kept(from_cell(row["class"]), values)
            one = Row(job.variant.name, job.seed, job.fold, case, group, row["class"], values, image)
            by_case.setdefault(case, []).append(one)
        for of_case in by_case.values():
            means = {name: _mean([row.values[name] for row in of_case]) for name in of_case[0].values}
            rows.append(of_case[0]._replace(classes="mean", values=means))
            if len(of_case) > 1:
                rows += of_case
    return rows


def of_measure(rows: Sequence[Row], measure: str = "dice", classes: str = "mean") -> dict[tuple[str, int, str], float]:
    """(model, seed, case) -> the mean over classes, or one class, and over folds where several score a case.

    It is what the statistics read.
    """
    found: dict[tuple[str, int, str], list[float]] = {}
    for row in rows:
        if row.classes == classes:
            found.setdefault((row.model, row.seed, row.case), []).append(row.values[measure])
    return {key: _mean(values) for key, values in found.items()}


def further_of(rows: Sequence[Row]) -> tuple[str, ...]:
    """The measures beyond `MEASURES` that every row has: a training of an earlier version, or a fold, may lack some."""
    return tuple(name for name in FURTHER if rows and all(name in row.values for row in rows))


def scored_twice(rows: Sequence[Row]) -> bool:
    """Whether folds score a case more than once."""
    keys = [(row.model, row.seed, row.case) for row in rows if row.classes == "mean"]
    return len(set(keys)) < len(keys)


def write_scores(rows: Sequence[Row], path: Path) -> None:
    """results.csv: a row per model, seed, case and class."""
    text, measures = io.StringIO(), (*MEASURES, *further_of(rows))
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["model", "seed", "fold", "case", "group", "class", *measures])
    for row in rows:
        fold = "" if row.fold is None else row.fold
        table.writerow(
            [
                *map(cell, (row.model, row.seed, fold, row.case, row.group, row.classes)),
                *(repr(row.values[m]) for m in measures),
            ]
        )
    write_text(path, text.getvalue())


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
        missing = [name for name in ("case", "class", *MEASURES) if not rows or rows[0].get(name) is None]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path}: cannot be read ({error}); remove the run folder, and the study trains it again"
        ) from None
    if missing:
        raise UsageError(f"{path}: has no {missing[0]}; remove the run folder, and the study trains it again")
    return rows


def _number(text: Any) -> float:
    try:
        return float(text)
    except (TypeError, ValueError):
        return math.nan


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan
