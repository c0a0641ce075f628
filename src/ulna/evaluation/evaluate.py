"""Predictions against references: a row per case and class, and a summary with intervals."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ulna.data.formats.label_maps import encode_labels
from ulna.data.formats.read import read_labels
from ulna.data.formats.source import Source, data_error
from ulna.data.formats.write import keeps_values
from ulna.data.layout.case import of_classes
from ulna.data.layout.masks import Masks, find_masks, groups_of
from ulna.data.layout.pseudonyms import opened
from ulna.data.turning import orientation_of
from ulna.data.volume import Volume, same_geometry
from ulna.errors import DataError, Problem, UsageError, counted, listed
from ulna.evaluation.intervals import told_mean
from ulna.evaluation.known import classes_of, empty_score, known_alone, mask_values, numbered, read_as, values_in
from ulna.evaluation.means import finite, summarise, tolerance_of
from ulna.evaluation.metrics import score_labels
from ulna.evaluation.order import told_as_images
from ulna.evaluation.predicted import predicted_masks, read_mask
from ulna.evaluation.units import Across, check_unit, pooled, slices_of
from ulna.recipe import Labels
from ulna.system.files import cell, write_text
from ulna.system.order import check_masks_first
from ulna.system.outputs import check_folder, check_names
from ulna.system.progress import track
from ulna.system.reading import read_json_object
from ulna.verbs import to_argv

log = logging.getLogger(__name__)

_SHOWN = 3  # ids in a message


class Pair(NamedTuple):
    """A case to be scored.

    Args:
        case: its id.
        prediction: (*S), class indices; (K, *S) of 0 and 1 for overlapping classes.
        reference: the same.
        volume: on their grid; the image or the reference as it was read.
    """

    case: str
    prediction: NDArray[Any]
    reference: NDArray[Any]
    volume: Volume


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Args:
        rows: one per case and class: case, class, tp, fp, fn and every measure; NaN where neither reference nor prediction
            holds the class (and for sensitivity where the reference does not).
        summary: cases, unit, tolerance, missing cases, and for every class and over all (`mean`) each measure's mean over
            cases with its 95 % bootstrap interval and `n`, the cases that count for it; `both_empty`, those that count for
            nothing; `pooled` has the overlap measures of all cases as one; `interval_note` where some intervals are not to
            be trusted.
    """

    rows: list[dict[str, Any]]
    summary: dict[str, Any]

    def __repr__(self) -> str:
        cases = counted(self.summary["cases"], "case")
        missing = f", {len(self.summary['missing'])} without prediction" if self.summary.get("missing") else ""
        return f"Evaluation: Dice {told_mean(self.summary['mean']['dice'])} over {cases}{missing}"

    def case_dice(self, case: str) -> float:
        """Mean Dice over the classes that count for one case; NaN if none does."""
        return _mean_dice([row for row in self.rows if row["case"] == case])

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        rows = [{k: finite(v) if isinstance(v, float) else v for k, v in row.items()} for row in self.rows]
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


def evaluate(
    predictions: Path | str,
    labels: Path | str,
    /,
    *,
    out: Path | str | None = None,
    by: str | None = None,
    pseudonymise: Path | str | None = None,
) -> Evaluation:
    """Compare predicted masks with references, case by case and class by class.

    A reference without a prediction counts as an empty prediction: it lowers every mean. A case counts for a class if its
    reference or its prediction holds it. Values are matched by case id. Of a folder of `ulna predict`, the masks that
    predict.json lists are scored, and the others named.

    Args:
        predictions: folder (or .npz file) of predicted masks.
        labels: the references: a data set, a folder of masks, or an .npz file.
        out: folder for metrics.csv and summary.json.
        by: what counts as one: case (by default, or as the recipe of the run says); slice, every slice of a volume, those of
            the run or across the largest spacing; group, all cases of a group of groups.json pooled, such as the slices of a
            volume that are files of their own.
        pseudonymise: the file of pseudonyms under which the masks were predicted (`ulna predict --pseudonymise`).

    Raises:
        DataError: for every pair that does not fit, all at once.
        UsageError: if there is no such unit, slices are asked of 2D images, or groups where no file names them.

    Example:
        ulna evaluate masks data/nuclei --out scores
    """
    predictions, labels = Path(predictions), Path(labels)
    if by is not None:
        check_unit(by)
    check_masks_first(predictions, labels, to_argv({"--out": out, "--by": by, "--pseudonymise": pseudonymise}))
    references = find_masks(labels)
    groups = groups_of(labels, references.sources) if by == "group" else None
    names_of = opened(pseudonymise, None if out is None else Path(out), predictions)
    if out is not None:
        _check_out(Path(out), labels, references)
    predicted, notes, about = predicted_masks(predictions)
    if names_of is not None:
        references, predicted = names_of.apply_to_masks(references), names_of.apply_to_masks(predicted)
        groups = None if groups is None else names_of.apply_to_groups(groups)
        about = {**about, "asked": [names_of.of(id) for id in about.get("asked", ())]}
        notes = {name: [names_of.of(id) for id in told] for name, told in notes.items()}
    asked = set(about.get("asked") or references.sources)
    wanted = [name for name in references.sources if name in asked]
    missing = [name for name in wanted if name not in predicted.sources]
    extra = [name for name in predicted.sources if name not in references.sources]
    if len(missing) == len(wanted):
        masks, ids = (listed(one.sources, _SHOWN) or "none" for one in (predicted, references))
        raise UsageError(
            f"{predictions}: no mask has the id of a reference in {labels}; masks are {masks}, references {ids}"
        )
    if extra:
        log.info("note: masks without a reference, left out (%d): %s", len(extra), listed(extra, _SHOWN))
    if notes.get("not_listed"):
        text = "masks in %s beside those of the last prediction, not scored (%d): %s"
        log.warning(text, predictions, len(notes["not_listed"]), listed(notes["not_listed"], _SHOWN))
    if notes.get("changed"):
        text = "masks changed after predict wrote them, scored as they are (%d): %s"
        log.warning(text, len(notes["changed"]), listed(notes["changed"], _SHOWN))
    with told_as_images(predictions, predicted.sources.values(), labels, references.sources.values()):
        names = classes_of(about, references, predicted, labels)
    of_references, of_masks = read_as(names, references.labels, written_by_ulna="labels" in about)
    of_pictures = values_in(names, mask_values(about, names)) if "labels" in about else of_masks
    if (of_objects := numbered(about, names)) is not None:
        of_masks = of_pictures = of_objects
    if of_masks.merges and "labels" not in about:
        log.info(
            "note: the values of these masks are read as those of the references (%s)", ", ".join(of_masks.described)
        )
    dims = _dims(references.sources[name] for name in wanted)
    problems: list[Problem] = []
    tags_differ: list[str] = []

    def pairs() -> Iterator[Pair]:
        for name in track(wanted, "evaluating"):
            try:
                volume = read_labels(of_classes(references.sources[name], names), dims)
                reference = encode_labels(volume, of_references)
                prediction = np.zeros_like(reference)
                if name in predicted.sources:
                    mask = read_mask(predicted.sources[name], references.images.get(name), names, volume, dims)
                    prediction = encode_labels(mask, of_pictures if keeps_values(mask) else of_masks)
                    if of_masks.ignored is not None:  # what a mask leaves open is not found
                        prediction = np.where(prediction == of_masks.ignored, 0, prediction).astype(prediction.dtype)
                    _check_grid(predicted.sources[name], mask, volume)
                    if orientation_of(mask) != orientation_of(volume):
                        tags_differ.append(name)
            except DataError as error:
                problems.extend(error.problems)
                continue
            yield Pair(name, *known_alone(prediction, reference, of_references), volume)

    unit = by or ("slice" if about.get("scored_by") == "slice" else "case")
    scores = Scores(names, empty_score(about), by=unit, across=Across.read(about.get("slices")), groups=groups)
    for pair in pairs():
        scores.add(pair)
    if problems:
        with told_as_images(predictions, predicted.sources.values(), labels, references.sources.values()):
            raise DataError(problems, predictions)
    evaluation = scores.evaluation(missing)
    evaluation.summary.update(notes)
    if of_references.ignore:
        evaluation.summary["ignore"] = list(of_references.ignore)
    if tags_differ:
        text = (
            "masks whose orientation tag differs from that of their reference (%d): %s; both are compared as viewers show "
            "them. Where one was drawn on the stored pixels, its scores are wrong: give it the tag of the image"
        )
        log.warning(text, len(tags_differ), listed(tags_differ, _SHOWN))
        evaluation.summary["orientation_tags_differ"] = tags_differ
    if out is not None:
        evaluation.write(Path(out))
    return evaluation


class Scores:
    """The measures of cases that come one after the other; none of their masks is kept.

    Args:
        labels: the classes.
        empty_score: what a class that neither prediction nor reference holds counts, where a recipe says so; else it counts
            for nothing.
        by: what is scored as one, of `UNITS`.
        across: the axis that slices lie across; None: that of the largest spacing.
        groups: case -> group.
    """

    def __init__(
        self,
        labels: Labels,
        empty_score: float | None = None,
        *,
        by: str = "case",
        across: Across | None = None,
        groups: Mapping[str, str] | None = None,
    ) -> None:
        self.labels, self.empty_score, self.by, self.across, self.groups = labels, empty_score, by, across, groups or {}
        self._rows: list[dict[str, Any]] = []
        self._kinds: dict[tuple[str, int], str] = {}  # unit and dimensions -> the first case that has them

    def add(self, pair: Pair) -> float:
        """Measure a case; its mean Dice over the classes (of slices: and over them) that count, NaN if none does.

        Raises:
            UsageError: if it has other dimensions than those before, or lengths in another unit.
        """
        self._check_kind(pair)
        if self.by == "slice":
            rows = [
                row
                for one in slices_of(pair.prediction, pair.reference, pair.volume, self.across)
                for row in self._measured(
                    {"case": pair.case, "slice": one.number}, one.prediction, one.reference, one.volume
                )
            ]
        else:
            rows = self._measured({"case": pair.case}, *pair[1:])
        self._rows += rows
        return _mean_dice(rows)

    def add_rows(self, rows: list[dict[str, Any]], unit: str, dims: int) -> None:
        """Take over the rows of another evaluation, of images of so many dimensions with lengths in this unit."""
        if rows:
            self._kinds.setdefault((unit, dims), rows[0]["case"])
        self._rows += rows

    def _measured(
        self, whose: dict[str, Any], prediction: NDArray[Any], reference: NDArray[Any], volume: Volume
    ) -> list[dict[str, Any]]:
        scores = score_labels(
            prediction,
            reference,
            classes=len(self.labels.foreground),
            spacing=volume.spacing,
            tolerance=tolerance_of(volume),
            multilabel=self.labels.multilabel,
            empty_score=self.empty_score,
            surface=self.by != "group",
        )
        return [{**whose, "class": name, **s} for name, s in zip(self.labels.foreground, scores, strict=True)]

    def evaluation(self, missing: Iterable[str] = ()) -> Evaluation:
        """What was measured so far; `missing` are references without a prediction."""
        unit, dims = next(iter(self._kinds), ("px", 2))
        rows = pooled(self._rows, self.groups, self.empty_score) if self.by == "group" else self._rows
        summary = summarise(rows, self.labels, unit, 2 if self.by == "slice" else dims, list(missing), self.empty_score)
        if self.by != "case":
            images = len({row["case"] for row in self._rows})
            summary |= {"by": self.by, "images": images}
        if self.by == "slice":
            alike = "slices of a volume are alike: intervals over slices are too narrow"
            summary["interval_note"] = "; ".join(note for note in (summary.get("interval_note"), alike) if note)
        return Evaluation(rows, summary)

    def _check_kind(self, pair: Pair) -> None:
        self._kinds.setdefault((pair.volume.unit, pair.volume.spatial_dims), pair.case)
        if len(self._kinds) > 1:
            (unit, dims), (other, other_dims) = self._kinds
            raise UsageError(
                f"{pair.case}: is {other_dims}D with lengths in {other}, {self._kinds[(unit, dims)]} is {dims}D in {unit}; "
                "evaluate them apart, or state the spacing in all files"
            )


def _mean_dice(rows: Iterable[Mapping[str, Any]]) -> float:
    """Over the classes that count for a case; NaN if none does."""
    known = [row["dice"] for row in rows if not np.isnan(row["dice"])]
    return float(np.mean(known)) if known else float("nan")


def _check_grid(source: Source, mask: Volume, reference: Volume) -> None:
    if mask.size != reference.size:
        what = f"has the size {mask.size}, its reference {reference.size}"
    elif not same_geometry(mask, reference):
        what = "has another orientation, origin or spacing (affine) than its reference"
    else:
        return
    raise data_error(source, what, "give masks on the grid of the references")


def _dims(references: Iterable[Source]) -> int | None:
    """Of the first reference that can be read as one thing only: volumes of one slice are what the others are."""
    for source in references:
        with suppress(DataError):  # told where it is evaluated
            volume = read_labels(source)
            if not volume.meta.either:
                return volume.spatial_dims
    return None


def _check_out(out: Path, labels: Path, references: Masks) -> None:
    """Refuse a folder whose files are not of an earlier evaluation."""
    check_folder(
        out, [labels, *dict.fromkeys(place for source in references.sources.values() for place in source.places)]
    )
    own = {
        "metrics.csv": lambda path: path.read_text(encoding="utf-8").startswith(("case,class,", "case,slice,class,")),
        "summary.json": lambda path: {"tolerance", "classes", "missing"} <= read_json_object(path).keys(),
    }
    check_names(out, own)
