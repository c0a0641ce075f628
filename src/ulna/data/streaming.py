"""From an image on disk to the grid of a plan on disk, a slab at a time: `prepare` of images larger than memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ulna.data.formats.bricks import Bricks
from ulna.data.formats.label_maps import encode_labels, value_counts
from ulna.data.formats.opening import OpenImage
from ulna.data.pipeline.normalising import ByParts
from ulna.data.pipeline.orientation import Turn, turn_of
from ulna.data.pipeline.preprocess import check_fit, grid_of, not_finite, steps_of
from ulna.data.pipeline.resampling import nearest_voxels, points, resample_rows, rows_for
from ulna.data.pipeline.whitening import whiten
from ulna.data.volume import Volume
from ulna.recipe import Labels, Plan

WORKING = 6  # times the bytes of a slab as float32 that are held beside it: stored, turned, normalised, resampled


class OnGrid(NamedTuple):
    """An image on the grid of a plan, on disk.

    Args:
        values: (C, *S'), float32, normalised.
        size: *S of the volume it came from, turned as the network sees it.
        turn: how the volume was turned.
        step: of the grid, in voxels of the volume along the turned axes.
        device: where boxes are given.
    """

    values: Bricks
    size: tuple[int, ...]
    turn: Turn
    step: tuple[float, ...]
    device: torch.device

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, *S')."""
        return self.values.shape

    def box(self, place: Sequence[slice]) -> Tensor:
        """(C, *place)."""
        return torch.from_numpy(self.values.read(place)).to(self.device)

    def close(self) -> None:
        """Give its place on the disk back."""
        self.values.close()


Seen = Callable[[Sequence[slice], NDArray[Any]], None]  # a box of the stored image, and its values (C, *box)


def streams(plan: Plan) -> bool:
    """Whether images of a plan are prepared a slab at a time: not cropped to fixed sizes, nor of a plan of format 1."""
    return plan.format > 1 and plan.crop is None


def prepare_on_disk(image: OpenImage, plan: Plan, scratch: Path, most: int, seen: Seen, device: torch.device) -> OnGrid:
    """Turn, normalise, whiten and resample an image, as `ulna.data.pipeline.preprocess.prepare` does it.

    Mean and standard deviation of an image differ from those of `prepare` by rounding; all else is the same to the bit.

    Args:
        image: opened; its slabs are read twice.
        plan: one that `streams`.
        scratch: the folder for the file.
        most: bytes of memory that may be taken, beside what reading one row takes.
        seen: is given every part of the image once, as stored.
        device: where boxes of the result are given.

    Raises:
        UsageError: as `prepare`.
        DataError: if the values are damaged.
    """
    volume = image.volume
    check_fit(volume, plan)
    name, turn = volume.path or "image", turn_of(volume, plan)
    size = turn.order(volume.size)
    step = steps_of(volume, plan) or (1.0,) * len(size)
    grid = grid_of(volume, plan)
    by_parts, bad = ByParts(plan.normalization), 0
    rows = rows_within(most, volume.array.shape, image.axis)
    for box in _boxes(volume.size, image.axis, rows):
        stored = image.read(box)
        seen(box, stored)
        values = np.asarray(stored, np.float32)
        bad += values.size - int(np.count_nonzero(np.isfinite(values)))
        if not bad:
            by_parts.add(values)
    if bad:
        raise not_finite(bad, name)
    axis = turn.axes.index(image.axis) if turn.axes else image.axis
    made = Bricks((volume.channels, *grid), np.float32, scratch)
    at_once = _points_within(rows, step[axis])
    try:
        for first in range(0, grid[axis], at_once):
            wanted = rows_for((first, min(first + at_once, grid[axis])), axis, size[axis], step[axis], grid[axis])
            turned = [slice(*wanted.voxels) if a == axis else slice(0, n) for a, n in enumerate(size)]
            values = turn.forward(image.read(stored_box(turned, turn, size)))
            part = torch.from_numpy(by_parts.normalise(np.ascontiguousarray(values, np.float32)))
            if plan.whitening is not None:
                part = whiten(part, plan.whitening)
            part = resample_rows(part, step, size, wanted)
            made.write([slice(*wanted.points) if a == axis else slice(0, n) for a, n in enumerate(grid)], part.numpy())
    except BaseException:
        made.close()
        raise
    assert points(size, step) == grid
    return OnGrid(made, size, turn, step, device)


def labels_on_disk(map_: OpenImage, labels: Labels, scratch: Path, most: int) -> Bricks:
    """The class indices of a raw label map as `encode_labels` gives them: (K, *S), K = 1 where classes exclude each other.

    Args:
        map_: opened, of one map without colours; its slabs are read twice, for all its values say what they mean.
        labels: the classes.
        scratch: the folder for the file.
        most: bytes of memory that may be taken, beside what one row takes.

    Raises:
        DataError: if values do not fit the classes.
    """
    shape = map_.volume.array.shape
    boxes = [*_boxes(map_.volume.size, map_.axis, rows_within(most, shape, map_.axis))]
    values: set[int | float] = set()
    for box in boxes:
        values.update(value_counts(map_.read(box)))
    made: Bricks | None = None
    try:
        for box in boxes:
            found = encode_labels(map_.volume.with_array(map_.read(box)), labels, values)
            found = found if labels.multilabel else found[None]
            if made is None:
                made = Bricks((len(found), *shape[1:]), found.dtype, scratch)
            made.write(box, found)
    except BaseException:
        if made is not None:
            made.close()
        raise
    assert made is not None
    return made


def nearest_rows(
    encoded: Bricks, volume: Volume, plan: Plan, most: int, channels: Sequence[int]
) -> Iterator[NDArray[Any]]:
    """Parts of a label map on the grid of a plan, by nearest neighbour, along its first axis: as `prepare_labels` makes it.

    Args:
        encoded: from `labels_on_disk`.
        volume: the image.
        plan: one that `streams`.
        most: bytes of a part, beside what one row takes.
        channels: of the map, which are given.

    Shape:
        (len(channels), rows, *S'[1:])
    """
    turn = turn_of(volume, plan)
    size = turn.order(volume.size)
    at = nearest_voxels(size, steps_of(volume, plan) or (1.0,) * len(size))
    row = 2 * len(channels) * encoded.dtype.itemsize * math.prod(size[1:]) * max(1, -(-size[0] // len(at[0])))
    rows = max(1, most // max(row, 1))
    for first in range(0, len(at[0]), rows):
        here = at[0][first : first + rows]
        begin = int(here[0])
        box = [slice(begin, int(here[-1]) + 1), *(slice(0, n) for n in size[1:])]
        values = turn.forward(encoded.read(stored_box(box, turn, size), channels))
        for axis, places in enumerate([here - begin, *at[1:]]):
            if len(places) != values.shape[axis + 1] or (places != np.arange(len(places))).any():
                values = values.take(places, axis + 1)
        yield np.ascontiguousarray(values)


def stored_box(box: Sequence[slice], turn: Turn, size: Sequence[int]) -> list[slice]:
    """A box of a turned image of `size` as one of the stored image."""
    flips = turn.flipped or (False,) * len(box)
    straight = [
        slice(n - part.stop, n - part.start) if flip else part for part, flip, n in zip(box, flips, size, strict=True)
    ]
    return list(turn.stored(straight))


def rows_within(most: int, shape: Sequence[int], axis: int) -> int:
    """How many rows of an image (C, *S) along an axis of *S are worked on at once within so many bytes; one at least."""
    each = WORKING * 4 * math.prod(shape) // shape[axis + 1]
    return max(1, most // max(each, 1))


def _points_within(rows: int, step: float) -> int:
    """Points along an axis whose voxels are about so many rows."""
    return max(1, int((rows - 2 * max(1.0, step)) / step) if rows > 2 * max(1.0, step) + step else 1)


def _boxes(size: Sequence[int], axis: int, rows: int) -> Iterator[list[slice]]:
    for start in range(0, size[axis], rows):
        yield [slice(start, min(start + rows, size[axis])) if a == axis else slice(0, n) for a, n in enumerate(size)]
