"""Predictions against references: a row per case and class, and a summary with intervals."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ulna.data.classes import classes_found
from ulna.data.masks import Masks, find_masks
from ulna.data.read import encode_labels, read_labels, value_counts, without_colour
from ulna.data.source import Source, fault
from ulna.errors import DataError, Problem, UsageError
from ulna.files import cell, write_text
from ulna.metrics import MEASURES, average, bootstrap_interval, score_labels
from ulna.progress import track
from ulna.reading import read_json_object
from ulna.recipe import Labels, parse
from ulna.volume import Volume, same_geometry

log = logging.getLogger(__name__)

# NSD: how far apart two surfaces may be and still count as the same (specs, losses and metrics 2)
VOLUME_TOLERANCE_MM = 1.0
IMAGE_TOLERANCE_PX = 2.0


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
        rows = [{k: _finite(v) if isinstance(v, float) else v for k, v in row.items()} for row in self.rows]
        return {"summary": self.summary, "rows": rows}

    def write(self, folder: Path) -> None:
        """metrics.csv and summary.json."""
        self.write_rows(folder / "metrics.csv")
        write_text(folder / "summary.json", json.dumps(self.summary, indent=1, allow_nan=False))

    def write_rows(self, path: Path) -> None:
        """A table with a row per case and class."""
        text = io.StringIO()
        table = csv.DictWriter(text, fieldnames=list(self.rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows({name: cell(value) for name, value in row.items()} for row in self.rows)
        write_text(path, text.getvalue())


def evaluate(predictions: Path | str, labels: Path | str, /, *, out: Path | str | None = None) -> Evaluation:
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
    if out is not None and (Path(out) / "recipe.yaml").exists():
        raise UsageError(f"{out}: is a run folder with a summary of its own; choose another --out")
    references, predicted = find_masks(Path(labels)), find_masks(Path(predictions))
    about = _about(Path(predictions))
    asked = about.get("asked") or list(references.sources)
    wanted = [name for name in references.sources if name in set(asked)]
    missing = [name for name in wanted if name not in predicted.sources]
    extra = [name for name in predicted.sources if name not in references.sources]
    if len(missing) == len(wanted):
        raise UsageError(
            f"{predictions}: no mask has the id of a reference in {labels}; "
            f"masks are {_some(predicted.sources)}, references {_some(references.sources)}"
        )
    if extra:
        log.info("note: %d masks have no reference and are left out: %s", len(extra), _some(extra))
    names = _classes(about, references, predicted, labels)
    dims = _dims(references.sources[name] for name in wanted)
    problems: list[Problem] = []

    def pairs() -> Iterator[tuple[str, NDArray[Any], NDArray[Any], Volume]]:
        for name in track(wanted, "evaluating"):
            try:
                volume = read_labels(references.sources[name], dims)
                reference = encode_labels(volume, names)
                prediction = np.zeros_like(reference)
                if name in predicted.sources:
                    mask = read_labels(predicted.sources[name], dims)
                    prediction = encode_labels(mask, names)
                    _check_grid(predicted.sources[name], mask, volume)
            except DataError as error:
                problems.extend(error.problems)
                continue
            yield name, prediction, reference, volume

    evaluation = evaluate_pairs(pairs(), names, missing=missing)
    if problems:
        raise DataError(problems, Path(predictions))
    if out is not None:
        evaluation.write(Path(out))
    return evaluation


def evaluate_pairs(
    pairs: Iterable[tuple[str, NDArray[Any], NDArray[Any], Volume]], labels: Labels, *, missing: Iterable[str] = ()
) -> Evaluation:
    """Measure pairs of (case, prediction, reference, a volume on their grid); masks are (*S), or (K, *S) if multilabel."""
    rows: list[dict[str, Any]] = []
    kinds: dict[tuple[str, int], str] = {}
    for case, prediction, reference, volume in pairs:
        kinds.setdefault((volume.unit, volume.spatial_dims), case)
        if len(kinds) > 1:
            (unit, dims), (other, other_dims) = kinds
            raise UsageError(
                f"{case}: is {other_dims}D with lengths in {other}, {kinds[(unit, dims)]} is {dims}D in {unit}; "
                "evaluate them apart, or state the spacing in all files"
            )
        scores = score_labels(
            prediction,
            reference,
            classes=len(labels.foreground),
            spacing=volume.spacing,
            tolerance=_tolerance(volume),
            multilabel=labels.multilabel,
        )
        rows += [{"case": case, "class": name, **s} for name, s in zip(labels.foreground, scores, strict=True)]
    unit, dims = next(iter(kinds), ("px", 2))
    return Evaluation(rows, _summary(rows, labels, unit, dims, list(missing)))


def _tolerance(volume: Volume) -> float:
    """1 mm in a volume; 2 pixels in an image and where nothing states a size."""
    if volume.unit == "mm" and volume.spatial_dims == 3:
        return VOLUME_TOLERANCE_MM
    return IMAGE_TOLERANCE_PX * max(volume.spacing)


def _summary(rows: list[dict[str, Any]], labels: Labels, unit: str, dims: int, missing: list[str]) -> dict[str, Any]:
    in_mm = unit == "mm" and dims == 3
    by_class = {name: [row for row in rows if row["class"] == name] for name in labels.foreground}
    cases = list(dict.fromkeys(row["case"] for row in rows))
    over_classes = [_mean_case([row for row in rows if row["case"] == case]) for case in cases]
    return {
        "cases": len(cases),
        "unit": unit,
        "tolerance": VOLUME_TOLERANCE_MM if in_mm else IMAGE_TOLERANCE_PX,
        "tolerance_unit": "mm" if in_mm else "px",
        "missing": missing,
        "mean": _with_intervals(over_classes),
        "classes": {name: _with_intervals(some) for name, some in by_class.items()},
        "pooled": {
            name: {measure: _finite(value) for measure, value in average(some, "pooled").items()}
            for name, some in by_class.items()
            if some
        },
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
        table[name] = {key: _finite(v) for key, v in values.items()}
    return table


def _finite(value: float) -> float | None:
    """None for what is undefined: JSON has no NaN."""
    return float(value) if np.isfinite(value) else None


def _check_grid(source: Source, mask: Volume, reference: Volume) -> None:
    if mask.size != reference.size:
        what = f"has the size {mask.size}, its reference {reference.size}"
    elif not same_geometry(mask, reference):
        what = "has another orientation, origin or spacing (affine) than its reference"
    else:
        return
    raise fault(source, what, "give masks on the grid of the references")


def _dims(references: Iterable[Source]) -> int | None:
    """Of the first reference that can be read as one thing only: volumes of one slice are what the others are."""
    for source in references:
        with suppress(DataError):  # told where it is evaluated
            volume = read_labels(source)
            if not volume.meta.get("either"):
                return volume.spatial_dims
    return None


def _about(predictions: Path) -> dict[str, Any]:
    """What `predict` wrote down beside its masks: the classes, and the cases it was asked for."""
    path = (predictions if predictions.is_dir() else predictions.parent) / "predict.json"
    if not path.exists():
        return {}
    facts = read_json_object(path)
    asked = facts.get("asked", [])
    if not isinstance(asked, list) or not all(isinstance(name, str) for name in asked):
        raise UsageError(f"{path}: `asked` is no list of case ids; predict again or remove it")
    return facts


def _classes(about: dict[str, Any], references: Masks, predicted: Masks, where: Path | str) -> Labels:
    """The classes as `predict` wrote them down, as a data set declares them, or as many as the masks hold."""
    if "labels" in about:
        return parse(Labels, about["labels"], source="predict.json")
    declared = references.labels or predicted.labels
    if declared is not None:
        return declared
    values = {
        f"{kind} {name}": value_counts(without_colour(read_labels(source)))
        for kind, masks in (("reference", references), ("prediction", predicted))
        for name, source in masks.sources.items()
    }
    return classes_found(values, where)


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
