"""A label map on the grid of an image that has the same voxels in another order: turned and moved, never resampled."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ulna.data.formats.dicom.stack import Stack
from ulna.data.volume import Volume, same_geometry

_ON_VOXEL = 0.05  # of a voxel


def onto(labels: Volume, stack: Stack) -> Volume:
    """The labels (C, *S) on the grid of a series; as they are, where their voxels are not voxels of the series.

    What lies outside of the series must be background.
    """
    if labels.affine is None or stack.affine is None or not labels.meta.oriented or stack.spacing is None:
        return labels
    flat = labels.spatial_dims == 2
    size, spacing = (stack.size[:2], stack.spacing[:2]) if flat and stack.size[2] == 1 else (stack.size, stack.spacing)
    like = Volume(np.empty((0, *size), np.uint8), spacing, "mm", stack.affine)
    return onto_grid(labels, like)


def onto_grid(labels: Volume, like: Volume) -> Volume:
    """As `onto`, on the grid of a volume."""
    if labels.affine is None or like.affine is None or same_geometry(labels, like):
        return labels
    array = labels.array[..., None] if labels.spatial_dims == 2 else labels.array
    size = (*like.size, 1)[:3]
    step = np.linalg.inv(like.affine) @ labels.affine  # from voxels of the labels to voxels of the image
    turn = np.rint(step[:3, :3])
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in array.shape[1:]], indexing="ij")).reshape(3, -1)
    exact = step[:3, :3] @ corners + step[:3, 3:]
    offset = np.rint(step[:3, 3]).astype(int)
    if not np.array_equal(np.abs(turn) @ np.ones(3), np.ones(3)) or abs(round(np.linalg.det(turn))) != 1:
        return labels
    if np.abs(exact - (turn @ corners + offset[:, None])).max() > _ON_VOXEL:
        return labels
    order = [int(np.flatnonzero(turn[axis])[0]) for axis in range(3)]
    turned = array.transpose(0, *(axis + 1 for axis in order))
    places, taken = [], []
    for axis in range(3):
        at = offset[axis] + int(turn[axis, order[axis]]) * np.arange(turned.shape[axis + 1])
        inside = (at >= 0) & (at < size[axis])
        places.append(at[inside])
        taken.append(np.flatnonzero(inside))
    inner = turned[np.ix_(np.arange(len(turned)), *taken)]
    if np.count_nonzero(inner) != np.count_nonzero(array):
        return labels  # what lies outside would be lost: the check of the grids tells that they differ
    made = np.zeros((len(array), *size), array.dtype)
    made[np.ix_(np.arange(len(array)), *places)] = inner
    made = made[..., 0] if like.spatial_dims == 2 else made
    return replace(labels, array=made, spacing=like.spacing, affine=like.affine)
