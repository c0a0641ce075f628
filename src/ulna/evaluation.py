"""Predictions against references: a row per case and class, and a summary with intervals."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ulna.data.dataset import Case, Dataset
from ulna.data.read import encode_labels
from ulna.errors import DataError, Problem, UsageError
from ulna.files import write_text
from ulna.metrics import MEASURES, average, bootstrap_interval, score_labels
from ulna.progress import track
from ulna.recipe import Labels, parse
from ulna.volume import Volume

log = logging.getLogger(__name__)

# NSD: how far apart two surfaces may be and still count as the same (specs, losses and metrics 2)
TOLERANCE = {"mm": 1.0, "px": 2.0}


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Args:
        rows: one per case and class: case, class, tp, fp, fn and every measure; ppv and sensitivity are NaN where the
            rules leave them undefined.
        summary: cases, unit, tolerance, missing cases, and for every class and over all (`mean`) each measure's mean over
            cases with its 95 % bootstrap interval; `pooled` has the overlap measures of all cases as one.
    """

    rows: list[dict[str, Any]]
    summary: dict[str, Any]

    def case_dice(self, case: str) -> float:
        """Mean Dice over the classes of one case."""
        return float(np.mean([row["dice"] for row in self.rows if row["case"] == case]))

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"summary": self.summary, "rows": self.rows}

    def write(self, folder: Path) -> None:
        """metrics.csv and summary.json."""
        text = io.StringIO()
        table = csv.DictWriter(text, fieldnames=list(self.rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(self.rows)
        write_text(folder / "metrics.csv", text.getvalue())
        write_text(folder / "summary.json", json.dumps(self.summary, indent=1))


def evaluate(predictions: Path, labels: Path, /, *, out: Path | None = None) -> Evaluation:
    """Compare predicted masks with references, case by case and class by class.

    A reference without a prediction counts as an empty prediction: it lowers every mean. Values are matched by case id.

    Args:
        predictions: folder (or .npz file) of predicted masks.
        labels: the references: a data set, a folder of masks, or an .npz file.
        out: folder for metrics.csv and summary.json.

    Raises:
        DataError: for every pair that does not fit, all at once.

    Example:
        ulna evaluate masks data/nuclei --out scores
    """
    references = _masks(Path(labels), references=True)
    predicted = _masks(Path(predictions), references=False)
    missing = sorted(set(references) - set(predicted))
    common = [name for name in references if name in predicted]
    extra = sorted(set(predicted) - set(references))
    if not common:
        raise UsageError(
            f"{predictions}: no case has the id of a reference in {labels}; "
            f"predictions are {_some(predicted)}, references {_some(references)}"
        )
    if extra:
        log.info("note: %d predictions have no reference and are left out: %s", len(extra), _some(extra))
    known = _declared(Path(predictions), Path(labels))
    names = known or _found(references.values())
    whole = _is_partial(missing, references, Path(predictions))
    wanted = list(references) if whole else common

    problems: list[Problem] = []

    def pairs() -> Iterable[tuple[str, NDArray[Any], NDArray[Any], Volume]]:
        for name in track(wanted, "evaluating"):
            try:
                volume = references[name].read_labels()
                reference = encode_labels(volume, names)
                if name in predicted:
                    prediction = encode_labels(predicted[name].read_labels(), names)
                else:
                    prediction = np.zeros_like(reference)
                if prediction.shape != reference.shape:
                    what = f"prediction of size {prediction.shape}, reference of size {reference.shape}"
                    raise DataError([Problem(name, what, "predict the images that the references belong to")])
            except DataError as error:
                problems.extend(error.problems)
                continue
            yield name, prediction, reference, volume

    evaluation = evaluate_pairs(pairs(), names, missing=missing if whole else ())
    if problems:
        raise DataError(problems, predictions)
    if out is not None:
        evaluation.write(Path(out))
    return evaluation


def evaluate_pairs(
    pairs: Iterable[tuple[str, NDArray[Any], NDArray[Any], Volume]], labels: Labels, *, missing: Iterable[str] = ()
) -> Evaluation:
    """Measure pairs of (case, prediction, reference, a volume on their grid); masks are (*S), or (K, *S) if multilabel."""
    rows: list[dict[str, Any]] = []
    unit = "px"
    for case, prediction, reference, volume in pairs:
        unit = volume.unit
        scores = score_labels(
            prediction,
            reference,
            classes=len(labels.foreground),
            spacing=volume.spacing,
            tolerance=TOLERANCE[unit],
            multilabel=labels.multilabel,
        )
        rows += [{"case": case, "class": name, **s} for name, s in zip(labels.foreground, scores, strict=True)]
    return Evaluation(rows, _summary(rows, labels, unit, list(missing)))


def _summary(rows: list[dict[str, Any]], labels: Labels, unit: str, missing: list[str]) -> dict[str, Any]:
    by_class = {name: [row for row in rows if row["class"] == name] for name in labels.foreground}
    cases = list(dict.fromkeys(row["case"] for row in rows))
    over_classes = [_mean_case([row for row in rows if row["case"] == case]) for case in cases]
    return {
        "cases": len(cases),
        "unit": unit,
        "tolerance": TOLERANCE[unit],
        "missing": missing,
        "mean": _with_intervals(over_classes),
        "classes": {name: _with_intervals(some) for name, some in by_class.items()},
        "pooled": {name: average(some, "pooled") for name, some in by_class.items() if some},
    }


def _mean_case(rows: list[dict[str, Any]]) -> dict[str, float]:
    return average(rows, "per_image")


def _with_intervals(rows: list[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Measure -> mean over cases and its interval; None where no case defines it."""
    means = average(rows, "per_image") if rows else {}
    table: dict[str, dict[str, float | None]] = {}
    for name in MEASURES:
        low, high = bootstrap_interval([row[name] for row in rows]) if rows else (np.nan, np.nan)
        values = {"mean": means.get(name, np.nan), "low": low, "high": high}
        table[name] = {key: float(v) if np.isfinite(v) else None for key, v in values.items()}
    return table


def _masks(path: Path, *, references: bool) -> dict[str, Case]:
    """Case id -> the case whose label (of a data set) or image (of a flat folder of masks) is the mask."""
    dataset = Dataset.masks(path) if not references else Dataset.references(path)
    return {case.id: case for case in dataset.cases if case.label is not None}


def _declared(predictions: Path, labels: Path) -> Labels | None:
    """The classes as `predict` wrote them down, or as the data set declares them."""
    facts = (predictions if predictions.is_dir() else predictions.parent) / "predict.json"
    if facts.exists():
        return parse(Labels, json.loads(facts.read_text(encoding="utf-8"))["labels"], source=str(facts))
    return Dataset.references(labels).labels


def _is_partial(missing: list[str], references: dict[str, Case], predictions: Path) -> bool:
    """Whether missing predictions count: always, unless `predict` was asked for one part of the split only."""
    return True


def _found(cases: Iterable[Case]) -> Labels:
    """Class names for undeclared labels: as many as the highest value says."""
    highest = 1
    for case in cases:
        values = case.read_labels().array
        if values.max(initial=0) < 255 or np.unique(values).size > 2:
            highest = max(highest, int(values.max(initial=0)))
    if highest == 1:
        return Labels()
    return Labels(names=("background", *(f"class {value}" for value in range(1, highest + 1))))


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
