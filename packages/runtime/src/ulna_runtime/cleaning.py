"""Post-processing of a mask: small objects taken away, holes filled; every class for itself, a slab at a time.

What is taken away becomes background. A hole is background that no way through background leads out of to the border of the
image; it is filled by a class only where nothing else borders on it. So no voxel of one class ever becomes another's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ulna_runtime.calibration import Rule
from ulna_runtime.components import box_of, find_components
from ulna_runtime.pipeline import Labels


class Changed(NamedTuple):
    """Voxels that a rule took away and filled."""

    removed: int = 0
    filled: int = 0


def clean(mask: NDArray[Any], labels: Labels, rules: Mapping[str, Rule], voxel: float) -> dict[str, Changed]:
    """Apply the rules to a mask, in place; first what is taken away, of all classes, then the holes.

    Args:
        mask: (*S) of class indices, or (K, *S) of 0 and 1 for overlapping classes.
        labels: the classes.
        rules: class -> what is done to it.
        voxel: what one has of the unit of `Rule.smallest`.

    Returns:
        What was changed, of every class with a rule.
    """
    maps: dict[str, tuple[NDArray[Any], int]] = {
        name: (mask[number], 1) if labels.multilabel else (mask, number + 1)
        for number, name in enumerate(labels.foreground)
        if name in rules
    }
    removed = {name: _without_small(*one, rules[name], voxel) for name, one in maps.items()}
    filled = {name: _fill(*one) if rules[name].holes else 0 for name, one in maps.items()}
    return {name: Changed(removed[name], filled[name]) for name in maps}


def _without_small(mask: NDArray[Any], value: int, rule: Rule, voxel: float) -> int:
    if not rule.largest and rule.smallest is None:
        return 0
    box = box_of(mask == value)
    if box is None:
        return 0
    inside = mask[box]
    found = find_components(lambda rows: inside[rows] == value, inside.shape)
    sizes = found.sizes[1:]
    least = None if rule.largest else rule.smallest
    large = np.zeros(len(sizes), bool) if least is None else sizes * voxel >= least
    large[np.argmax(sizes)] |= not large.any()  # of equal ones the first; a class is never taken away whole
    kept = np.concatenate([[True], large])
    if kept.all():
        return 0
    for rows, numbers in found.numbers():
        inside[rows][~kept[numbers]] = 0
    return int(sizes[~large].sum())


def _fill(mask: NDArray[Any], value: int) -> int:
    box = box_of(mask == value)
    if box is None:
        return 0
    inside = mask[box]  # a hole lies within: at its faces there is a way out, or the border of the image
    found = find_components(lambda rows: inside[rows] == 0, inside.shape, corners=False)
    fills = ~found.outer
    fills[0] = False
    if fills.any():
        for rows, numbers in found.numbers():
            fills[numbers[_beside_others(inside, rows, value)]] = False
    count = int(found.sizes[fills].sum())
    if count:
        for rows, numbers in found.numbers():
            inside[rows][fills[numbers]] = value
    return count


def _beside_others(inside: NDArray[Any], rows: slice, value: int) -> NDArray[np.bool_]:
    """Which voxels of some rows share a face with another class, or are of one."""
    start = max(0, rows.start - 1)
    around = inside[start : rows.stop + 1]
    other = (around != 0) & (around != value)
    near = other.copy()
    for axis in range(other.ndim):
        for here, there in ((slice(1, None), slice(None, -1)), (slice(None, -1), slice(1, None))):
            to, of = ((slice(None),) * axis + (one,) for one in (here, there))
            near[to] |= other[of]
    return near[rows.start - start : rows.stop - start]
