"""Resampling and labels of runs whose plan is of format 1, kept so that they predict exactly as they did.

Both grids cover the same field of view, so that the step is only near the planned spacing, and nothing is smoothed before it
gets coarser. New plans never come here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ulna.data.pipeline.resampling import between_slabs
from ulna.data.turning import as_stored, exchanged, orientation_of, upright
from ulna.data.volume import Volume


def stored_values(volume: Volume) -> NDArray[Any]:
    """The values as they are stored: runs of format 1 did not invert files that say that white is zero."""
    white = volume.meta.white
    if white is None:
        return volume.array
    return np.subtract(white, volume.array, dtype=volume.array.dtype, casting="unsafe")


def labels_of(reference: Volume, image: Volume) -> Volume:
    """The label map as it lay then: its stored pixels on those of the image, whatever the orientation tags of both say."""
    own, tag = orientation_of(reference), orientation_of(image)
    if own == tag or exchanged(reference.size, own) != exchanged(image.size, tag):
        return reference
    array = upright(as_stored(reference.array, own), tag)
    return replace(reference, array=array, spacing=image.spacing, unit=image.unit)


def grid_size(size: tuple[int, ...], spacing: tuple[float, ...], wanted: tuple[float, ...]) -> tuple[int, ...]:
    """*S' of an image of `size` and `spacing` on a grid of the `wanted` spacing."""
    return tuple(max(1, round(n * s / t)) for n, s, t in zip(size, spacing, wanted, strict=True))


def resize(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """(C, *S) -> (C, *size), linearly, edges of the fields aligned; untouched where the size stays."""
    if tuple(maps.shape[1:]) == tuple(size):
        return maps
    mode = "bilinear" if len(size) == 2 else "trilinear"
    return F.interpolate(maps[None], size=size, mode=mode, align_corners=False)[0]


def resize_labels(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """The same by nearest neighbour."""
    if tuple(maps.shape[1:]) == tuple(size):
        return maps
    return F.interpolate(maps.float()[None], size=size, mode="nearest-exact")[0].to(maps.dtype)


def restore(slabs: Iterable[Tensor], grid: tuple[int, ...], size: tuple[int, ...], axis: int = 0) -> Iterator[Tensor]:
    """Back to the grid of the image, slab by slab, as `ulna.data.pipeline.resampling.restore` does it for newer plans."""
    if grid == size:
        yield from slabs
        return
    places = ((torch.arange(size[axis]) + 0.5) * grid[axis] / size[axis] - 0.5).clamp_min(0)

    def across(rows: Tensor) -> Tensor:
        return resize(rows, (*size[:axis], rows.shape[axis + 1], *size[axis + 1 :]))

    yield from between_slabs(slabs, places, grid, size, axis, across)
