"""Predictions against references: a row per case and class, and a summary with intervals."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ulna.data.formats.label_maps import encode_labels
from ulna.data.formats.limits import TooLargeError, check_need, holding
from ulna.data.formats.read import read_labels
from ulna.data.formats.write import keeps_values
from ulna.data.layout.case import of_classes
from ulna.data.layout.masks import Masks, find_masks, groups_of
from ulna.data.layout.pseudonyms import opened
from ulna.data.turning import orientation_of
from ulna.errors import DataError, PartialFailure, Problem, UsageError, listed
from ulna.evaluation.choice import choose, read_families, spread
from ulna.evaluation.known import (
    classes_of,
    empty_score,
    known_alone,
    known_probabilities,
    mask_values,
    measured,
    numbered,
    read_as,
    values_in,
)
from ulna.evaluation.needs import UNCHOSEN, check_encoding, known_bytes, scoring_within
from ulna.evaluation.numbers import numbers_of
from ulna.evaluation.order import told_as_images
from ulna.evaluation.pair import Pair, without_values
from ulna.evaluation.predicted import SHOWN, check_grid, common_dims, predicted_masks, read_mask, tell_others
from ulna.evaluation.probabilities import probability_files, read_probabilities
from ulna.evaluation.scored_page import is_page, write_scored_page
from ulna.evaluation.scores import Evaluation, Scores
from ulna.evaluation.subgroups import by_subgroups, cases_of
from ulna.evaluation.units import Across, check_unit
from ulna.pages.sealing import PAGE_FILE
from ulna.system.order import check_masks_first
from ulna.system.outputs import check_folder, check_names
from ulna.system.progress import track
from ulna.system.reading import read_json_object
from ulna.verbs import to_argv

log = logging.getLogger(__name__)


def evaluate(
    predictions: Path | str,
    labels: Path | str,
    /,
    *,
    out: Path | str | None = None,
    by: str | None = None,
    metrics: Sequence[str] = (),
    pseudonymise: Path | str | None = None,
    max_ram: float | None = None,
) -> Evaluation:
    """Compare predicted masks with references, case by case and class by class.

    A reference without a prediction counts as an empty prediction: it lowers every mean. A case counts for a class if its
    reference or its prediction holds it. Values are matched by case id. Of a folder of `ulna predict`, the masks that
    predict.json lists are scored, and the others named.

    Args:
        predictions: folder (or .npz file) of predicted masks.
        labels: the references: a data set, a folder of masks, or an .npz file.
        out: folder for metrics.csv, summary.json and report.html, a page with distributions, all cases, and pictures of the
            worst and the best.
        by: what counts as one: case (by default, or as the recipe of the run says); slice, every slice of a volume, those of
            the run or across the largest spacing; group, all cases of a group of groups.json pooled, such as the slices of a
            volume that are files of their own.
        metrics: what is measured beside overlap: surface, volume, lesions, cldice, boundary, calibration; several with
            commas. Left out (or auto): what applies by the rule of docs/metrics.md, as summary.json tells; all: everything.
        pseudonymise: the file of pseudonyms under which the masks were predicted (`ulna predict --pseudonymise`).
        max_ram: GB of memory that the process may take: a case that would take more is not scored, but listed with what it
            needs at least, and in no mean (exit 3). Left out, all of the machine's.

    Where groups.json beside the references has fields such as site or scanner, scores are told by group, too.

    Raises:
        DataError: for every pair that does not fit, all at once.
        UsageError: if there is no such unit or measure, slices are asked of 2D images, or groups where no file names them; if
            the process takes `max_ram` without any case.
        PartialFailure: if `max_ram` leaves no place for some cases; the others are scored and written.

    Example:
        ulna evaluate masks data/nuclei --out scores
    """
    predictions, labels = Path(predictions), Path(labels)
    if by is not None:
        check_unit(by)
    flags = {
        "--out": out, "--by": by, "--metrics": metrics, "--pseudonymise": pseudonymise, "--max-ram": max_ram,
    }  # fmt: skip
    check_masks_first(predictions, labels, to_argv(flags))
    named_measures = read_families(metrics) if metrics else ()
    with scoring_within(max_ram):
        return _scored(predictions, labels, out, by, named_measures, pseudonymise)


def _scored(
    predictions: Path,
    labels: Path,
    out: Path | str | None,
    by: str | None,
    named_measures: tuple[str, ...],
    pseudonymise: Path | str | None,
) -> Evaluation:
    """What `evaluate` gives back, within the memory that is allowed."""
    references = find_masks(labels)
    named = groups_of(labels, references.sources, needed=by == "group")
    names_of = opened(pseudonymise, None if out is None else Path(out), predictions)
    if out is not None:
        _check_out(Path(out), labels, references)
    predicted, notes, about = predicted_masks(predictions)
    maps = probability_files(predictions, predicted.sources)
    if names_of is not None:
        references, predicted = names_of.apply_to_masks(references), names_of.apply_to_masks(predicted)
        maps = {names_of.of(id): path for id, path in maps.items()}
        named = names_of.apply_to_groups(named)
        about = {**about, "asked": [names_of.of(id) for id in about.get("asked", ())]}
        notes = {name: [names_of.of(id) for id in told] for name, told in notes.items()}
    asked = set(about.get("asked") or references.sources)
    wanted = [name for name in references.sources if name in asked]
    missing = [name for name in wanted if name not in predicted.sources]
    extra = [name for name in predicted.sources if name not in references.sources]
    if len(missing) == len(wanted):
        masks, ids = (listed(one.sources, SHOWN) or "none" for one in (predicted, references))
        raise UsageError(
            f"{predictions}: no mask has the id of a reference in {labels}; masks are {masks}, references {ids}"
        )
    tell_others(predictions, extra, notes)
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
    dims, first = common_dims(references.sources[name] for name in wanted)
    unit = by or ("slice" if about.get("scored_by") == "slice" else "case")

    too_large: dict[str, DataError] = {}
    looked: list[str] = []
    unseen: list[str] = []  # references that the measures were chosen without

    def looked_at() -> Iterator[NDArray[Any]]:
        for name in spread(wanted):
            looked[:] = [name]
            try:
                volume = read_labels(of_classes(references.sources[name], names), dims)
                check_encoding(volume, of_references)
                reference = encode_labels(volume, of_references)
            except TooLargeError:
                unseen.append(name)
                continue
            except DataError:  # told where it is evaluated
                continue
            del volume
            with holding(reference.nbytes):
                yield reference
            del reference

    def allow(need: float) -> None:
        try:
            check_need(references.sources[looked[0]], need, "choosing measures by its shape", UNCHOSEN)
        except TooLargeError as error:  # nor would what was chosen without it hold for it
            too_large[looked[0]] = error
            unseen.append(looked[0])
            raise

    families = named_measures or measured(about)
    lenient = not named_measures  # a recipe holds for other data, too
    choice = choose(
        families, names, looked_at, volume=first, by=unit, with_probabilities=bool(maps), lenient=lenient, allow=allow
    )
    problems: list[Problem] = []
    tags_differ: dict[str, None] = {}  # in their order, each once

    numbers = choice.has("lesions") and (of_masks.instances or of_references.instances)

    def read(name: str) -> Pair:
        stored = read_labels(of_classes(references.sources[name], names), dims)
        check_encoding(stored, of_references)
        reference = encode_labels(stored, of_references)
        volume = without_values(stored)
        kept = stored if numbers else None  # the place is enough for all else
        del stored
        prediction, probabilities, mask, given = None, None, None, None
        with holding(reference.nbytes + (0 if kept is None else kept.array.nbytes)):
            if name in predicted.sources:
                mask = read_mask(predicted.sources[name], references.images.get(name), names, volume, dims)
                meaning = of_pictures if keeps_values(mask) else of_masks
                check_encoding(mask, meaning)
                prediction = encode_labels(mask, meaning)
                if of_masks.ignored is not None:  # what a mask leaves open is not found
                    prediction = np.where(prediction == of_masks.ignored, 0, prediction).astype(
                        prediction.dtype, copy=False
                    )
                check_grid(predicted.sources[name], mask, volume)
                if orientation_of(mask) != orientation_of(volume):
                    tags_differ[name] = None
                given = mask if numbers else None
                mask = without_values(mask)
        held = reference.nbytes + (reference if prediction is None else prediction).nbytes
        with holding(held):
            check_need(volume.path, known_bytes(volume, of_references, choice, numbers=numbers), "with its mask it")
            if choice.has("calibration") and mask is not None and name in maps:
                probabilities = read_probabilities(maps[name], names, mask)
            elif choice.has("calibration") and mask is None:  # an empty prediction, and sure of it
                probabilities = np.zeros((len(names.foreground), *volume.size), dtype=np.float32)
        if prediction is None:
            prediction = np.zeros_like(reference)
        probabilities = known_probabilities(probabilities, reference, of_references)
        ours, theirs = known_alone(prediction, reference, of_references)
        objects = None
        if numbers:
            objects = numbers_of(given, of_masks, ours == 1), numbers_of(kept, of_references, theirs == 1)
        return Pair(name, ours, theirs, volume, probabilities, objects)

    across, empty = Across.read(about.get("slices")), empty_score(about)
    scores = Scores(names, empty, by=unit, across=across, groups=named.patients, choice=choice)
    dice: dict[str, float] = {}
    for name in track([name for name in wanted if name not in too_large], "evaluating"):
        try:
            dice[name] = scores.add(read(name))
        except TooLargeError as error:
            too_large[name] = error
        except DataError as error:
            problems.extend(error.problems)
    if problems or not dice:
        with told_as_images(predictions, predicted.sources.values(), labels, references.sources.values()):
            raise DataError([*problems, *(one for error in too_large.values() for one in error.problems)], predictions)
    evaluation = scores.evaluation([name for name in missing if name not in too_large])
    evaluation.summary.update(notes)
    if too_large:
        # without the files' names, which may be a patient's
        evaluation.summary["not_scored"] = {name: error.problems[0].what for name, error in too_large.items()}
    if unseen:
        evaluation.summary.setdefault("measures", choice.to_json())["not_looked_at"] = unseen
    if named.fields and unit != "group":
        evaluation.summary["subgroups"] = by_subgroups(cases_of(evaluation.rows), named.fields, named.patients)
    if of_references.ignore:
        evaluation.summary["ignore"] = list(of_references.ignore)
    if tags_differ:
        text = (
            "masks whose orientation tag differs from that of their reference (%d): %s; both are compared as viewers show "
            "them. Where one was drawn on the stored pixels, its scores are wrong: give it the tag of the image"
        )
        log.warning(text, len(tags_differ), listed(tags_differ, SHOWN))
        evaluation.summary["orientation_tags_differ"] = [*tags_differ]
    if out is not None:
        evaluation.write(Path(out))
        page = write_scored_page(
            Path(out), evaluation, dice, read, references.cases, about=about, predictions=predictions, labels=labels
        )
        evaluation = replace(evaluation, report=page)
    if too_large:
        raise PartialFailure({name: str(error) for name, error in too_large.items()}, len(dice), result=evaluation)
    return evaluation


def _check_out(out: Path, labels: Path, references: Masks) -> None:
    """Refuse a folder whose files are not of an earlier evaluation."""
    check_folder(
        out, [labels, *dict.fromkeys(place for source in references.sources.values() for place in source.places)]
    )
    own = {
        "metrics.csv": lambda path: path.read_text(encoding="utf-8").startswith(("case,class,", "case,slice,class,")),
        "summary.json": lambda path: {"tolerance", "classes", "missing"} <= read_json_object(path).keys(),
        PAGE_FILE: is_page,
    }
    check_names(out, own)
