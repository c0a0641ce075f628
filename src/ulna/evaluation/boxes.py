"""Where every structure lies in a prediction and its reference, and how many of its voxels are found: all in one pass.

What is measured of a structure is measured in its box then, so that neither memory nor time grows with the number of classes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ulna.evaluation.surfaces import Mask, parts

AT_ONCE = 1 << 20  # voxels that are looked at together
FEW = 4  # values

Box = tuple[slice, ...]


class Counts(NamedTuple):
    """Pixels or voxels found, invented and missed."""

    tp: int
    fp: int
    fn: int


class Located(NamedTuple):
    """A structure in a prediction and its reference.

    Args:
        number: from 1.
        counts: its voxels.
        box: the smallest that holds both masks; of no extent where both are empty.
    """

    number: int
    counts: Counts
    box: Box

    def mask(self, labels: NDArray[Any], *, multilabel: bool) -> Mask:
        """The part of one map that lies in the box."""
        place: Any = (self.number - 1, *self.box) if multilabel else self.box
        return np.asarray(labels[place] == (1 if multilabel else self.number))


def locate(prediction: NDArray[Any], reference: NDArray[Any], classes: int, *, multilabel: bool) -> list[Located]:
    """Every structure, in the order of its values or channels.

    Args:
        prediction: (*S) of 0..K, or (K, *S), not 0 where a structure is.
        reference: the same.
        classes: K.
        multilabel: the structures may overlap, each has a channel of its own.
    """
    if multilabel:
        each = [_found(ours, theirs, 1) for ours, theirs in zip(prediction, reference, strict=True)]
        return [one[0]._replace(number=number) for number, one in enumerate(each, start=1)]
    return _found(prediction, reference, classes)


def _found(prediction: NDArray[Any], reference: NDArray[Any], classes: int) -> list[Located]:
    seen = [_Seen(prediction.ndim) for _ in range(classes)]
    for here in parts(prediction.shape, AT_ONCE):
        ours, theirs = prediction[here], reference[here]
        for number in _values(ours, classes) | _values(theirs, classes):
            seen[number - 1].add(here, ours == number, theirs == number)
    return [Located(number, one.counts, one.box) for number, one in enumerate(seen, start=1)]


def _values(labels: NDArray[Any], classes: int) -> set[int]:
    """Those of 1..K that may occur: where there are few, all of them, as counting takes as long as looking for four."""
    highest = min(int(labels.max(initial=0)), classes)
    if highest <= FEW:
        return {*range(1, highest + 1)}
    values = labels.ravel()
    if int(values.max()) > classes:
        values = values[values <= classes]  # and not cut to K + 1, which the type of the map may not hold
    return {int(value) for value in np.flatnonzero(np.bincount(values.astype(np.intp))) if value}


class _Seen:
    """What is known of a structure so far."""

    def __init__(self, dims: int) -> None:
        self._sizes = [0, 0, 0]  # of prediction, reference, and what both have
        self._ends: list[list[int]] = [[] for _ in range(dims)]  # first and last places along every axis

    def add(self, here: Box, ours: Mask, theirs: Mask) -> None:
        """A part of both masks, and where it begins along its first axes."""
        sizes = [int(np.count_nonzero(one)) for one in (ours, theirs)]
        if not any(sizes):
            return
        sizes.append(int(np.count_nonzero(ours & theirs)))
        self._sizes = [size + more for size, more in zip(self._sizes, sizes, strict=True)]
        either = ours | theirs
        across: Mask = np.asarray(either.any(axis=0))
        starts = [one.start for one in here] + [0] * (either.ndim - len(here))
        self._note(0, np.flatnonzero(either.reshape(len(either), -1).any(axis=1)) + starts[0])
        for axis in range(across.ndim):
            places = np.flatnonzero(across.any(axis=tuple(a for a in range(across.ndim) if a != axis)))
            self._note(axis + 1, places + starts[axis + 1])

    def _note(self, axis: int, places: NDArray[Any]) -> None:
        self._ends[axis] = [min([*self._ends[axis], int(places[0])]), max([*self._ends[axis], int(places[-1])])]

    @property
    def counts(self) -> Counts:
        ours, theirs, both = self._sizes
        return Counts(both, ours - both, theirs - both)

    @property
    def box(self) -> Box:
        return tuple(slice(ends[0], ends[-1] + 1) if ends else slice(0, 0) for ends in self._ends)
