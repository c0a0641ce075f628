"""What is scored as one: a case, every slice of a volume, or all cases of a group, such as volumes whose slices are files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ulna.data.pipeline.orientation import to_canonical
from ulna.data.pipeline.slices import coarsest_axis
from ulna.data.turning import UPRIGHT
from ulna.data.volume import Volume
from ulna.errors import UsageError, unknown
from ulna.evaluation.metrics import SURFACE, Score, pool_by
from ulna.recipe import Plan

UNITS = ("case", "slice", "group")


class Across(NamedTuple):
    """The axis that slices lie across.

    Args:
        axis: of the volume, as the network sees it.
        canonical: whether that is turned to canonical axes, else as it is stored.
    """

    axis: int
    canonical: bool

    @classmethod
    def of(cls, plan: Plan) -> Across | None:
        """That of a plan; None where it has no slices."""
        return None if plan.slices is None else cls(plan.slices.axis, plan.orientation is not None)

    @classmethod
    def read(cls, value: Any) -> Across | None:
        """As `predict` wrote it down; None for anything else."""
        try:
            axis, canonical = int(value["axis"]), bool(value["canonical"])
        except (TypeError, KeyError, ValueError):
            return None
        return cls(axis, canonical) if 0 <= axis <= 2 else None


def check_unit(by: str) -> None:
    """Refuse a unit that there is not.

    Raises:
        UsageError: with the nearest.
    """
    if by not in UNITS:
        raise UsageError(f"--by: {unknown('unit', by, UNITS)!s}")


def stored_axis(volume: Volume, across: Across | None) -> int:
    """The axis of a volume, as it is stored, that its slices lie across.

    Args:
        volume: with three spatial axes.
        across: of the run that predicted it; None: that of the largest spacing, as a plan would choose it.
    """
    affine = volume.affine
    turn = None if affine is None or (across is not None and not across.canonical) else to_canonical(affine, 3)
    if across is None:
        spacing = volume.spacing if turn is None else turn.order(volume.spacing)
        axis = coarsest_axis(spacing, oriented=affine is not None)
    else:
        axis = across.axis
    return turn.axes[axis] if turn is not None and turn.axes else axis


class Slice(NamedTuple):
    """One slice of a case: its number along the stored axis, both maps of it, and where it lies."""

    number: int
    prediction: NDArray[Any]
    reference: NDArray[Any]
    volume: Volume


def slices_of(
    prediction: NDArray[Any], reference: NDArray[Any], volume: Volume, across: Across | None
) -> Iterator[Slice]:
    """Every slice of a case, in the order of its file.

    Raises:
        UsageError: if the case is 2D.
    """
    if volume.spatial_dims == 2:
        raise UsageError(
            f"--by slice: {volume.path or 'an image'} is 2D and has no slices; leave it out, or pool those of one "
            "volume with --by group"
        )
    axis = stored_axis(volume, across)
    spacing = tuple(step for other, step in enumerate(volume.spacing) if other != axis)
    meta = replace(volume.meta, orientation=UPRIGHT)
    for number in range(volume.size[axis]):
        image, predicted, true = (np.take(one, number, axis=axis - 3) for one in (volume.array, prediction, reference))
        yield Slice(number, predicted, true, Volume(image, spacing, volume.unit, None, volume.path, meta))


def pooled(
    rows: Sequence[Mapping[str, Any]], groups: Mapping[str, str], empty_score: float | None
) -> list[dict[str, Any]]:
    """Rows of cases and classes -> of groups and classes, each from its summed counts; distances cannot be summed (NaN).

    Args:
        rows: with case, class, tp, fp and fn.
        groups: case -> its group; a case without one is a group of its own.
        empty_score: what a class counts that no case of a group holds.
    """
    by_class: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_class.setdefault(row["class"], []).append(row)
    scores: dict[tuple[str, str], Score] = {}
    for name, some in by_class.items():
        of = [groups.get(row["case"], row["case"]) for row in some]
        counts = [{key: float(row[key]) for key in ("tp", "fp", "fn")} for row in some]
        for group, score in zip(dict.fromkeys(of), pool_by(counts, of, empty_score), strict=True):
            scores[group, name] = score
    order = dict.fromkeys(group for group, _ in scores)
    absent = dict.fromkeys(SURFACE, math.nan)
    return [
        {"case": group, "class": name, **_ordered({**absent, **scores[group, name]})}
        for group in order
        for name in by_class
        if (group, name) in scores
    ]


def _ordered(score: Mapping[str, float]) -> dict[str, float]:
    """The measures first, then the counts."""
    counts = ("tp", "fp", "fn")
    return {name: score[name] for name in (*(n for n in score if n not in counts), *counts)}
