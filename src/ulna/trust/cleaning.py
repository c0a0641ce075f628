"""Post-processing of a mask: small objects taken away, holes filled; every class for itself, a slab at a time.

What is taken away becomes background. A hole is background that no way through background leads out of to the border of the
image; it is filled by a class only where nothing else borders on it. So no voxel of one class ever becomes another's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ulna.recipe import Frozen, Labels
from ulna.trust.components import Components, box_of, find_components


class Rule(Frozen):
    """What is done to one class."""

    largest: bool = False  # all but the largest object are taken away
    smallest: float | None = Field(default=None, gt=0)  # objects below it are taken away, in the unit of volumes
    holes: bool = False  # are filled

    @property
    def words(self) -> str:
        """For people.

        Example:
            >>> Rule(largest=True, holes=True).words
            'largest object, holes filled'
        """
        small = "" if self.smallest is None else f"objects of at least {self.smallest:.3g}"
        return ", ".join(
            filter(None, ["largest object" if self.largest else small, "holes filled" if self.holes else ""])
        )


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
    numbers = {name: number for number, name in enumerate(labels.foreground, start=1) if name in rules}
    removed = {name: _without_small(*_map_of(mask, n, labels), rules[name], voxel) for name, n in numbers.items()}
    filled = {name: _fill(*_map_of(mask, n, labels)) if rules[name].holes else 0 for name, n in numbers.items()}
    return {name: Changed(removed[name], filled[name]) for name in numbers}


def _map_of(mask: NDArray[Any], number: int, labels: Labels) -> tuple[NDArray[Any], int]:
    """The map that a class stands in, and its value there."""
    return (mask[number - 1], 1) if labels.multilabel else (mask, number)


def _without_small(mask: NDArray[Any], value: int, rule: Rule, voxel: float) -> int:
    box = box_of(mask == value) if rule.largest or rule.smallest is not None else None
    if box is None:
        return 0
    inside = mask[box]
    found = find_components(lambda rows: inside[rows] == value, inside.shape)
    kept = _kept(found, rule, voxel)
    if kept.all():
        return 0
    for rows, numbers in found.numbers():
        inside[rows][~kept[numbers]] = 0
    return int(found.sizes[~kept].sum())


def _kept(found: Components, rule: Rule, voxel: float) -> NDArray[np.bool_]:
    """(n + 1): which components stay; of none, if all are small, the largest."""
    kept = np.zeros(len(found.sizes), bool)
    kept[0] = True
    if rule.smallest is not None and not rule.largest:
        kept[1:] = found.sizes[1:] * voxel >= rule.smallest
    if len(kept) > 1 and not kept[1:].any():
        kept[1 + int(np.argmax(found.sizes[1:]))] = True  # of equal ones the first
    return kept


def _fill(mask: NDArray[Any], value: int) -> int:
    box = box_of(mask == value)
    if box is None:
        return 0
    inside = mask[box]  # a hole lies within: at its faces there is a way out, or the border of the image
    found = find_components(lambda rows: inside[rows] == 0, inside.shape, corners=False)
    fills = ~found.outer
    fills[0] = False
    if not fills.any():
        return 0
    for rows, numbers in found.numbers():
        _spare_shared(fills, numbers, inside, rows, value)
    count = int(found.sizes[fills].sum())
    if count:
        for rows, numbers in found.numbers():
            inside[rows][fills[numbers]] = value
    return count


def _spare_shared(
    fills: NDArray[np.bool_], numbers: NDArray[np.int64], inside: NDArray[Any], rows: slice, value: int
) -> None:
    """Take back the holes of a slab that border on another class."""
    start, stop = max(0, rows.start - 1), min(inside.shape[0], rows.stop + 1)
    around = inside[start:stop]
    other = (around != 0) & (around != value)
    if not other.any():
        return
    for axis in range(numbers.ndim):
        for step in (-1, 1):
            first = rows.start - start
            here: list[slice] = [slice(None)] * numbers.ndim
            there: list[slice] = [slice(None)] * numbers.ndim
            there[0] = slice(first, first + numbers.shape[0])
            n = numbers.shape[axis]
            if axis == 0:
                low, high = max(0, first + step), min(other.shape[0], first + step + n)
                there[0], here[0] = slice(low, high), slice(low - first - step, high - first - step)
            else:
                here[axis] = slice(max(0, -step), n - max(0, step))
                there[axis] = slice(max(0, step), n - max(0, -step))
            fills[numbers[tuple(here)][other[tuple(there)]]] = False
