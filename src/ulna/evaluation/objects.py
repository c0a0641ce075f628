"""Scores by objects: how many are found, invented and missed, by size; and how well those that are found are outlined.

An object is a connected component of a mask, neighbours by a corner included (8 in 2D, 26 in 3D), or a number of a map that
has one number an object. Each object is matched with at most one of the other side, pairs of the highest IoU first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import label

from ulna.data.formats.label_maps import value_counts
from ulna.data.formats.slabs import slabs
from ulna.evaluation.metrics import LESIONS, Score
from ulna.evaluation.surfaces import Mask, joint_box

THRESHOLDS = {"10": 0.1, "50": 0.5}  # ending of a column -> IoU of a pair from which an object is found
AREAS = (32.0**2, 96.0**2)  # px, of objects in images: small, medium and large of COCO (lin2014)
DIAMETERS = (5.0, 10.0, 20.0)  # of a sphere of the same volume, of objects in volumes


class Matches(NamedTuple):
    """The objects of both sides in the order of their numbers: voxels, and the IoU with their partner (0 without)."""

    prediction_sizes: NDArray[np.int64]
    prediction_iou: NDArray[np.float64]
    reference_sizes: NDArray[np.int64]
    reference_iou: NDArray[np.float64]

    def counts(self, threshold: float) -> tuple[int, int, int]:
        """Found, invented and missed objects, where a pair needs an IoU of at least `threshold`."""
        found = int(np.count_nonzero(self.reference_iou >= threshold))
        return found, self.prediction_sizes.size - found, self.reference_sizes.size - found


def objects_of(mask: Mask) -> NDArray[Any]:
    """Mask (*S) -> its connected components, numbered from 1; 0 outside."""
    return np.asarray(label(mask, structure=np.ones((3,) * mask.ndim))[0])


def match_masks(prediction: Mask, reference: Mask) -> Matches:
    """`match_objects` of the connected components of two masks."""
    box = joint_box(prediction, reference)
    return match_objects(objects_of(prediction[box]), objects_of(reference[box]))


def match_objects(prediction: NDArray[Any], reference: NDArray[Any]) -> Matches:
    """Match the objects of two maps, one to one, from the highest IoU down; of equal ones the lower numbers first.

    Args:
        prediction: (*S), 0 or the number of an object.
        reference: the same.

    Example:
        >>> match_objects(np.array([1, 1, 0, 2]), np.array([1, 0, 0, 0])).counts(0.5)
        (1, 1, 0)
    """
    ours, theirs = _numbered(prediction), _numbered(reference)
    sizes = tuple(np.array([*one.values()], dtype=np.int64) for one in (ours, theirs))
    codes, shared = _shared(prediction, reference, [*ours], [*theirs])
    of_reference, of_prediction = np.divmod(codes, max(1, len(ours)))
    iou = shared / (sizes[0][of_prediction] + sizes[1][of_reference] - shared)
    found = np.zeros(len(ours)), np.zeros(len(theirs))
    for pair in np.argsort(-iou, kind="stable"):
        a, b = of_prediction[pair], of_reference[pair]
        if not found[0][a] and not found[1][b]:
            found[0][a] = found[1][b] = iou[pair]
    return Matches(sizes[0], found[0], sizes[1], found[1])


def _numbered(objects: NDArray[Any]) -> dict[int | float, int]:
    """The numbers of objects, in ascending order, and how many voxels each has."""
    return {number: count for number, count in value_counts(objects).items() if number}


def _shared(
    prediction: NDArray[Any], reference: NDArray[Any], ours: Sequence[float], theirs: Sequence[float]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Every pair of objects that touch, as place in `theirs` times the length of `ours` plus place in `ours`; its voxels."""
    codes, counts = np.empty(0, np.int64), np.empty(0, np.int64)
    for one, other in slabs(prediction, reference):
        both = (one != 0) & (other != 0)
        pairs = np.searchsorted(theirs, other[both]) * max(1, len(ours)) + np.searchsorted(ours, one[both])
        found, times = np.unique(pairs, return_counts=True)
        codes, places = np.unique(np.concatenate([codes, found]), return_inverse=True)
        total = np.zeros(codes.size, np.int64)
        np.add.at(total, places, np.concatenate([counts, times]))
        counts = total
    return codes, counts


def object_scores(matches: Matches, empty_score: float | None = None) -> Score:
    """The measures of `LESIONS` of one pair of masks.

    Source: PQ (kirillov2019), Eq. 1. Reading: an IoU of exactly 0.5 is a pair, too.

    Args:
        matches: of its objects.
        empty_score: F1 and PQ where neither side has an object, with no false positive; None: they count for nothing.
    """
    scores: Score = {}
    if not matches.prediction_sizes.size and not matches.reference_sizes.size:
        scores = dict.fromkeys(LESIONS, math.nan)
        if empty_score is not None:
            for name in LESIONS:
                scores[name] = 0.0 if "_fp_" in name else math.nan if "sensitivity" in name else empty_score
        return scores
    for ending, threshold in THRESHOLDS.items():
        tp, fp, fn = matches.counts(threshold)
        scores[f"lesion_f1_{ending}"] = 2 * tp / (2 * tp + fp + fn)
        scores[f"lesion_sensitivity_{ending}"] = tp / (tp + fn) if tp + fn else math.nan
        scores[f"lesion_fp_{ending}"] = float(fp)
    tp, fp, fn = matches.counts(0.5)
    found = matches.reference_iou[matches.reference_iou >= 0.5]
    scores["pq"] = float(found.sum()) / (tp + fp / 2 + fn / 2)
    return scores


def size_bounds(dims: int, voxel: float) -> NDArray[np.float64]:
    """Where the next bin of sizes begins, in pixels or voxels; `voxel` is the size of one, in the unit of `DIAMETERS`."""
    return np.array(AREAS if dims == 2 else [math.pi / 6 * d**3 / voxel for d in DIAMETERS])


def size_names(dims: int, unit: str) -> list[str]:
    """The bins in words.

    Example:
        >>> size_names(3, "mm")
        ['below 5 mm', '5 to 10 mm', '10 to 20 mm', '20 mm and more']
    """
    edges, unit = (AREAS, "px") if dims == 2 else (DIAMETERS, unit)
    middle = [f"{low:g} to {high:g} {unit}" for low, high in pairwise(edges)]
    return [f"below {edges[0]:g} {unit}", *middle, f"{edges[-1]:g} {unit} and more"]


class BySize:
    """Counts of the objects of one structure over cases, by size: a few numbers, whatever the number of objects.

    A found or missed object has the size of the reference, an invented one its own.

    Args:
        dims: of the images.
        unit: of their lengths.
    """

    def __init__(self, dims: int, unit: str) -> None:
        self.names = size_names(dims, unit)
        self.dims, self.cases = dims, 0
        self._counts = {ending: np.zeros((3, len(self.names)), dtype=np.int64) for ending in THRESHOLDS}

    def add(self, matches: Matches, voxel: float) -> None:
        """Count the objects of a case, if it has any on either side; `voxel`: the size of one."""
        if not matches.prediction_sizes.size and not matches.reference_sizes.size:
            return
        self.cases += 1
        bounds, n = size_bounds(self.dims, voxel), len(self.names)
        sizes = (np.searchsorted(bounds, one, "right") for one in (matches.reference_sizes, matches.prediction_sizes))
        of_reference, of_prediction = sizes
        for ending, threshold in THRESHOLDS.items():
            found = matches.reference_iou >= threshold
            invented = matches.prediction_iou < threshold
            bins = (of_reference[found], of_prediction[invented], of_reference[~found])
            self._counts[ending] += [np.bincount(one, minlength=n) for one in bins]

    def summary(self) -> dict[str, Any]:
        """Ending of the threshold -> size -> references, found, F1, sensitivity and false positives a case."""
        return {
            ending: {
                name: rates(int(tp), int(fp), int(fn), self.cases)
                for name, (tp, fp, fn) in zip(self.names, counts.T, strict=True)
            }
            for ending, counts in self._counts.items()
        }


def rates(tp: int, fp: int, fn: int, cases: int) -> dict[str, Any]:
    """What counts of objects say, over all cases together; None where it is not defined."""
    return {
        "references": tp + fn,
        "found": tp,
        "false_positives": fp,
        "f1": 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else None,
        "sensitivity": tp / (tp + fn) if tp + fn else None,
        "false_positives_per_case": fp / cases if cases else None,
        "cases": cases,
    }


def merged(summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Several `BySize.summary` as one, from the sums of their counts."""
    total: dict[str, Any] = {}
    for ending in THRESHOLDS:
        for name in dict.fromkeys(name for one in summaries for name in one[ending]):
            some = [one[ending][name] for one in summaries if name in one[ending]]
            tp, fp, of = (sum(int(one[key]) for one in some) for key in ("found", "false_positives", "references"))
            total.setdefault(ending, {})[name] = rates(tp, fp, of - tp, sum(int(one["cases"]) for one in some))
    return total


def merged_lesions(summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Class -> objects by size over several trainings, of the classes that each of them measured.

    Args:
        summaries: of trainings, as in summary.json.
    """
    each = [summary[summary["evaluated_on"]].get("lesions", {}) for summary in summaries]
    common = [name for name in each[0] if all(name in one for one in each)] if each else []
    return {name: merged([one[name] for one in each]) for name in common}
