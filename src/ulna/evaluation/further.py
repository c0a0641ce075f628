"""The measures of one structure beyond overlap and surface, as far as they were chosen."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ulna.evaluation.calibration import calibration_scores
from ulna.evaluation.centreline import cldice
from ulna.evaluation.contour import boundary_iou
from ulna.evaluation.metrics import CALIBRATION, VOLUME, Score
from ulna.evaluation.objects import Matches, match_masks, match_objects, object_scores
from ulna.evaluation.surfaces import Mask

MM3_PER_ML = 1000.0


def volume_error(
    prediction: Mask, reference: Mask, spacing: Sequence[float], empty_score: float | None = None
) -> tuple[float, float]:
    """How far the volume is off and to which side, in ml, of a spacing in mm; NaN where both masks are empty.

    With an `empty_score` both are 0 there.
    """
    sizes = [np.count_nonzero(mask) for mask in (prediction, reference)]
    if not any(sizes):
        return (math.nan, math.nan) if empty_score is None else (0.0, 0.0)
    bias = float(sizes[0] - sizes[1]) * math.prod(spacing) / MM3_PER_ML
    return abs(bias), bias


def further_scores(
    prediction: Mask,
    reference: Mask,
    families: Collection[str],
    *,
    spacing: Sequence[float],
    empty_score: float | None = None,
    probabilities: NDArray[Any] | None = None,
    objects: tuple[NDArray[Any], NDArray[Any]] | None = None,
    size: Sequence[int] | None = None,
) -> tuple[Score, Matches | None]:
    """The measures of these families, and the objects where lesions are among them.

    Args:
        prediction: (*S).
        reference: (*S).
        families: of `ulna.evaluation.choice.FAMILIES`.
        spacing: distance between neighbours along every axis, in mm for volumes in ml.
        empty_score: of Dice and IoU where both masks are empty; F1, PQ, clDice and boundary IoU get it too.
        probabilities: (*S) of the structure, NaN where the class is not known; None: calibration is not known.
        objects: (*S) and (*S), their numbers; None: connected components.
        size: of the whole image, where the masks are a box of it that holds both; probabilities are of all of it, or None.
    """
    scores: Score = {}
    matches = None
    if "volume" in families:
        scores |= dict(zip(VOLUME, volume_error(prediction, reference, spacing, empty_score), strict=True))
    if "lesions" in families:
        matches = match_masks(prediction, reference) if objects is None else match_objects(*objects)
        scores |= object_scores(matches, empty_score)
    if "cldice" in families:
        scores["cldice"] = cldice(prediction, reference, empty_score)
    if "boundary" in families:
        scores["boundary_iou"] = boundary_iou(prediction, reference, spacing, empty_score, size)
    if "calibration" in families:
        absent = dict.fromkeys(CALIBRATION, math.nan)
        scores |= absent if probabilities is None else calibration_scores(probabilities, prediction, reference)
    return scores, matches
