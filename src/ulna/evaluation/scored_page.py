"""The page of `evaluate`: scores of masks in a folder, with pictures of the worst and the best, read again for it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ulna.data.formats.dicom.onto import onto_grid
from ulna.data.formats.limits import TooLargeError, holding
from ulna.data.layout.case import Case
from ulna.data.volume import Volume, same_geometry
from ulna.errors import UsageError
from ulna.evaluation.drawn import DrawnCase, ShownCase, draw_case, extremes_of
from ulna.evaluation.origins import of_predictions
from ulna.evaluation.pair import Pair
from ulna.evaluation.report import Evaluated, is_synthetic, write_report
from ulna.pages.sealing import PAGE_FILE, writer_of
from ulna.version import version

log = logging.getLogger(__name__)

VERB = "evaluate"
PARTS = frozenset({"labels", "labelstr", "masks"})  # of a data set, whose name says more


def is_page(path: Path) -> bool:
    """Whether a file is a page that ulna wrote."""
    return writer_of(path) != ""


def write_scored_page(
    out: Path,
    evaluation: Evaluated,
    dice: Mapping[str, float],
    read: Callable[[str], Pair],
    cases: Mapping[str, Case],
    *,
    about: Mapping[str, Any],
    predictions: Path,
    labels: Path,
) -> Path | None:
    """Write report.html; None where the page of a prediction has that name, which stays.

    Args:
        out: the folder.
        evaluation: the scores.
        dice: case -> its mean Dice.
        read: a case's mask and reference.
        cases: those with an image; of the others the masks alone are drawn.
        about: what predict.json says.
        predictions: the masks.
        labels: the references.
    """
    path = out / PAGE_FILE
    if path.exists() and writer_of(path) == "predict":
        log.info("note: %s is the page of the prediction and stays; a page of the scores needs another --out", path)
        return None
    shown = [ShownCase.of(_drawn(read(case), cases.get(case), dice[case])) for case in extremes_of(dice)]
    data = labels.resolve()
    data = data.parent if data.name.lower() in PARTS else data
    return write_report(
        path, evaluation, shown, of_predictions(about, predictions, labels, version("ulna")),
        verb=VERB, title=data.name, table="metrics.csv", synthetic=is_synthetic(data),
    )  # fmt: skip


def _drawn(pair: Pair, case: Case | None, dice: float) -> DrawnCase:
    """Over the image, or masks alone over nothing."""
    with holding(pair.nbytes):
        image = _image(pair.volume, case)
    nothing = pair.volume.with_array(np.zeros((1, *pair.volume.size), np.uint8))
    drawn = draw_case(pair.case, dice, nothing if image is None else image, pair.reference, pair.prediction)
    return drawn._replace(pictures=drawn.pictures[1:]) if image is None else drawn


def _image(reference: Volume, case: Case | None) -> Volume | None:
    """The image on the grid of its reference; None where there is none that can be read and lies there."""
    try:
        image = None if case is None else case.read_image()
    except TooLargeError as error:
        log.info("note: drawn without its image: %s", error)
        image = None
    except UsageError as error:
        log.debug("drawn without its image: %s", error)
        image = None
    if image is None:
        return None
    image = onto_grid(image, reference)
    if not same_geometry(image, reference):
        return None
    return reference.with_array(image.array)
