"""Scores of label maps: Dice, IoU, PPV, sensitivity and surface distances, with every undefined case decided.

| prediction / reference | Dice, IoU | PPV | sensitivity | HD, HD95, ASSD       | NSD |
|------------------------|-----------|-----|-------------|----------------------|-----|
| both empty             | NaN       | NaN | NaN         | NaN                  | NaN |
| structure missed       | 0         | 0   | 0           | the image's diagonal | 0   |
| structure invented     | 0         | 0   | NaN         | the image's diagonal | 0   |

Means leave NaN out: a case counts for a structure if its reference or its prediction holds it, so what is never found
scores 0, however many cases do not hold it. A missed structure has the worst value of every measure, so it never improves a
mean. Papers often give Dice and IoU 1 where both are empty: that is `empty_score`, with distances of 0 and an NSD of 1.
The diagonal, sqrt(sum((n * spacing)^2)) of the whole image, is longer than any
distance between two of its voxels.

Masks are boolean arrays (*S) with 2 or 3 axes; label maps hold 0 for background and 1..K for the structures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ulna.errors import UsageError, counted, unknown
from ulna.evaluation.boxes import Counts, locate
from ulna.evaluation.surfaces import Mask, SurfaceDistances, check_masks, surface_distances

OVERLAP = ("dice", "iou", "ppv", "sensitivity")
SURFACE = ("hd95", "assd", "nsd")
MEASURES = OVERLAP + SURFACE
# of other files of this room, where they apply; see `choice.py`
VOLUME = ("volume_error_ml", "volume_bias_ml")
LESIONS = (
    "lesion_f1_10", "lesion_sensitivity_10", "lesion_fp_10", "lesion_f1_50", "lesion_sensitivity_50", "lesion_fp_50", "pq",
)  # fmt: skip
CALIBRATION = ("brier", "ece", "ece_foreground")
LENGTHS = ("hd95", "assd")  # the smaller the better
FURTHER = (*VOLUME, *LESIONS, "cldice", "boundary_iou", *CALIBRATION)

Score = dict[str, float]  # a measure's name -> its value, and the counts tp, fp, fn


def count(prediction: Mask, reference: Mask) -> Counts:
    """True positives, false positives and false negatives of one pair of masks.

    Raises:
        UsageError: if the shapes differ or a mask is not boolean.

    Example:
        >>> count(np.array([[True, True, False]]), np.array([[True, False, True]]))
        Counts(tp=1, fp=1, fn=1)
    """
    check_masks(prediction, reference)
    tp = np.count_nonzero(prediction & reference)
    return Counts(int(tp), int(np.count_nonzero(prediction) - tp), int(np.count_nonzero(reference) - tp))


def pool(counts: Iterable[Counts]) -> Counts:
    """The sum of several counts: one confusion matrix over all of them."""
    pooled = Counts(0, 0, 0)
    for each in counts:
        pooled = Counts(pooled.tp + each.tp, pooled.fp + each.fp, pooled.fn + each.fn)
    return pooled


def dice(counts: Counts, empty_score: float | None = None) -> float:
    """2TP / (2TP + FP + FN); where both masks are empty `empty_score`, or NaN."""
    tp, fp, fn = counts
    return 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else _of_empty(empty_score)


def iou(counts: Counts, empty_score: float | None = None) -> float:
    """TP / (TP + FP + FN), also called Jaccard; where both masks are empty `empty_score`, or NaN."""
    tp, fp, fn = counts
    return tp / (tp + fp + fn) if tp + fp + fn else _of_empty(empty_score)


def _of_empty(empty_score: float | None) -> float:
    return math.nan if empty_score is None else empty_score


def ppv(counts: Counts) -> float:
    """TP / (TP + FP), the precision; NaN where both masks are empty, 0 where only the prediction is."""
    tp, fp, fn = counts
    if tp + fp:
        return tp / (tp + fp)
    return 0.0 if fn else math.nan  # 0/0 of a missed structure: as NaN it would drop out of the mean and improve it


def sensitivity(counts: Counts) -> float:
    """TP / (TP + FN), the recall; NaN where the reference is empty."""
    tp, _, fn = counts
    return tp / (tp + fn) if tp + fn else math.nan


def _length(distances: SurfaceDistances, statistic: Callable[[NDArray[np.float64]], Any]) -> float:
    """A statistic of both directed sets together; NaN if both masks are empty, the diagonal if one is."""
    both = np.concatenate([distances.from_prediction, distances.from_reference])
    if not both.size:
        return math.nan
    return float(statistic(both)) if np.isfinite(both).all() else distances.diagonal


def hausdorff(distances: SurfaceDistances) -> float:
    """HD: the largest distance of both directed sets."""
    return _length(distances, np.max)


def hd95(distances: SurfaceDistances) -> float:
    """HD95: the 95th percentile of both directed sets together (some tools take the larger of two percentiles)."""
    return _length(distances, lambda both: np.percentile(both, 95))


def assd(distances: SurfaceDistances) -> float:
    """ASSD: the mean of both directed sets together."""
    return _length(distances, np.mean)


def nsd(distances: SurfaceDistances, tolerance: float) -> float:
    """NSD: the share of both surfaces that lies within `tolerance` (unit of the spacing) of the other; NaN without any.

    Raises:
        UsageError: if the tolerance is negative or not a number.
    """
    if not tolerance >= 0:
        raise UsageError(f"tolerance {tolerance} is not a length; give one of at least 0, in the unit of the spacing")
    both = np.concatenate([distances.from_prediction, distances.from_reference])
    if not both.size:
        return math.nan
    # a spacing out of a float32 affine puts neighbours at 1.0000001 mm: still within 1 mm
    return float(np.mean(np.isfinite(both) & (both <= tolerance * (1 + 1e-6))))


def _overlap(counts: Counts, empty_score: float | None) -> Score:
    if empty_score is not None and not 0 <= empty_score <= 1:
        raise UsageError(f"empty_score {empty_score} is not a score; give a number from 0 to 1")
    values = (dice(counts, empty_score), iou(counts, empty_score), ppv(counts), sensitivity(counts))
    return dict(zip(OVERLAP, values, strict=True))


def score(
    prediction: Mask,
    reference: Mask,
    *,
    spacing: Sequence[float],
    tolerance: float,
    empty_score: float | None = None,
    surface: bool = True,
) -> Score:
    """Every measure of one pair of masks, in the order of `MEASURES`, then the counts `tp`, `fp` and `fn`.

    Args:
        prediction: (*S).
        reference: (*S).
        spacing: distance between neighbours along every axis of *S.
        tolerance: of the NSD, in the unit of the spacing.
        empty_score: Dice and IoU where both masks are empty, whose distances are then 0 and whose NSD is 1; None: the pair
            counts for nothing (NaN).
        surface: False leaves out HD95, ASSD and NSD.

    Raises:
        UsageError: if the shapes differ, a mask is not boolean, or a number is out of its range.

    Example:
        >>> square = np.zeros((8, 8), dtype=bool)
        >>> square[2:6, 2:6] = True
        >>> score(square, np.roll(square, 1, axis=0), spacing=(2.0, 1.0), tolerance=1.0)["hd95"]
        2.0
    """
    return score_in_box(
        prediction, reference, count(prediction, reference), prediction.shape,
        spacing=spacing, tolerance=tolerance, empty_score=empty_score, surface=surface,
    )  # fmt: skip


def score_in_box(
    prediction: Mask,
    reference: Mask,
    counts: Counts,
    size: Sequence[int],
    *,
    spacing: Sequence[float],
    tolerance: float,
    empty_score: float | None = None,
    surface: bool = True,
) -> Score:
    """`score` of a box that holds both masks.

    Args:
        prediction: (*box).
        reference: (*box).
        counts: of the voxels of both.
        size: *S of the whole image.
        spacing: as for `score`, like the rest.
    """
    scores = _overlap(counts, empty_score)
    if surface:
        distances = surface_distances(prediction, reference, spacing, size)
        scores |= {"hd95": hd95(distances), "assd": assd(distances), "nsd": nsd(distances, tolerance)}
        if empty_score is not None and not any(counts):
            scores |= {"hd95": 0.0, "assd": 0.0, "nsd": 1.0}
    return scores | counts._asdict()


def score_labels(
    prediction: NDArray[Any],
    reference: NDArray[Any],
    *,
    classes: int,
    spacing: Sequence[float],
    tolerance: float,
    multilabel: bool = False,
    empty_score: float | None = None,
    surface: bool = True,
) -> list[Score]:
    """The scores of every structure of one image, in the order of their values or channels.

    Args:
        prediction: label map (*S) of integers; (K, *S), not 0 where a structure is, if `multilabel`.
        reference: the same.
        classes: K, the structures without the background.
        spacing: distance between neighbours along every axis of *S.
        tolerance: of the NSD, in the unit of the spacing.
        multilabel: the structures may overlap, each has a channel of its own.
        empty_score: Dice and IoU where both masks are empty, whose distances are then 0 and whose NSD is 1; None: the pair
            counts for nothing (NaN).
        surface: False leaves out HD95, ASSD and NSD.

    Raises:
        UsageError: if a map is not of integers, or its values or channels do not fit K; else as in `score`.
    """
    check_labels(prediction, reference, classes, multilabel=multilabel)
    return [
        score_in_box(
            one.mask(prediction, multilabel=multilabel), one.mask(reference, multilabel=multilabel), one.counts,
            prediction.shape[-len(spacing) :],
            spacing=spacing, tolerance=tolerance, empty_score=empty_score, surface=surface,
        )
        for one in locate(prediction, reference, classes, multilabel=multilabel)
    ]  # fmt: skip


def check_labels(prediction: NDArray[Any], reference: NDArray[Any], classes: int, *, multilabel: bool) -> None:
    """Refuse what are no two label maps of so many structures; see `score_labels`.

    Raises:
        UsageError: naming the one that does not fit.
    """
    for name, labels in (("prediction", prediction), ("reference", reference)):
        if labels.dtype.kind not in "biu":
            raise UsageError(
                f"{name}: label maps are of integers, not {labels.dtype}; take the argmax or a threshold first"
            )
        if multilabel and labels.shape[:1] != (classes,):
            raise UsageError(
                f"{name}: shape {labels.shape} does not start with one channel for each of {classes} classes"
            )
        # an unknown value would never be scored, and nobody would know
        if not multilabel and labels.size and not 0 <= labels.min() <= labels.max() <= classes:
            raise UsageError(
                f"{name}: label values {labels.min()} to {labels.max()} do not fit {classes} classes "
                f"(0 is background, 1..{classes}); remap the others"
            )
    if prediction.shape != reference.shape:
        raise UsageError(
            f"prediction {prediction.shape} and reference {reference.shape} differ in shape; "
            f"bring both to one grid before they are scored"
        )


def mask_of(labels: NDArray[Any], k: int, *, multilabel: bool) -> Mask:
    """Structure k, from 1, of a label map (*S), or of (K, *S) if multilabel; what is ignored is not of it."""
    return np.asarray(labels[k - 1] == 1 if multilabel else labels == k)


def _pooled(scores: Iterable[Score]) -> Counts:
    return pool(Counts(int(s["tp"]), int(s["fp"]), int(s["fn"])) for s in scores)


def pool_by(scores: Sequence[Score], groups: Sequence[Hashable], empty_score: float | None = None) -> list[Score]:
    """One score for each group from its summed counts, in the order of first appearance.

    Slices of one volume become the volume's score; the `per_volume` mean of the papers is
    `average(pool_by(scores, volumes), "per_image")`. Surface measures cannot be summed and are left out.

    Raises:
        UsageError: if there is not one group for each score.
    """
    if len(scores) != len(groups):
        raise UsageError(
            f"{counted(len(scores), 'score')} and {counted(len(groups), 'group')}; give one group for each score"
        )
    members: dict[Hashable, list[Score]] = {}
    for group, each in zip(groups, scores, strict=True):
        members.setdefault(group, []).append(each)
    pooled = [_pooled(each) for each in members.values()]
    return [_overlap(counts, empty_score) | counts._asdict() for counts in pooled]


def average(scores: Sequence[Score], mode: Literal["per_image", "pooled"], empty_score: float | None = None) -> Score:
    """One value for each measure over several images.

    `per_image` is the mean of the images' scores, NaN left out (NaN if nothing is left). `pooled` takes Dice, IoU, PPV
    and sensitivity from one summed confusion matrix; surface measures are absent. Report both IoU and Dice: their
    relation IoU = Dice / (2 - Dice) holds for an image or a pool, not for a mean.

    Raises:
        UsageError: if there are no scores, if they hold different measures, or if the mode does not exist.
    """
    if not scores:
        raise UsageError("no scores to average; give at least one")
    if mode == "pooled":
        return _overlap(_pooled(scores), empty_score)
    if mode != "per_image":
        raise unknown("averaging mode", mode, ["per_image", "pooled"])
    if len({frozenset(each) for each in scores}) > 1:
        raise UsageError("the scores hold different measures; compute all of them with or without `surface`")
    values = {name: np.array([each[name] for each in scores]) for name in (*MEASURES, *FURTHER) if name in scores[0]}
    return {name: mean_known(column) for name, column in values.items()}


def mean_known(values: ArrayLike) -> float:
    """The mean without NaN; NaN where nothing is left.

    Example:
        >>> mean_known([0.5, math.nan, 1.0])
        0.75
    """
    known = np.asarray(values, dtype=np.float64)
    known = known[~np.isnan(known)]
    return float(known.mean()) if known.size else math.nan
