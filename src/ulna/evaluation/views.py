"""What is drawn of an image: which slice of a volume, and which way up.

What has an orientation is drawn in the radiological convention (`view`): the patient's right on the left of axial and coronal
pictures, the front on the left of sagittal ones, front or head up, with letters at the sides. Without an orientation 2D
images are drawn as they are, and slices of a volume with the first voxel axis to the right and the second upwards.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ulna.data.pipeline.orientation import ENDS, PLANES, to_canonical, world_of
from ulna.data.volume import Volume

COARSE = 1.5  # times the next coarsest axis: slices are thick, and drawn as they were taken


class Sides(NamedTuple):
    """Where a picture's sides lie in the body, and how high a pixel is as a multiple of its width.

    Example:
        >>> Sides("axial", left="R", right="L", top="A", bottom="P")
        Sides(plane='axial', left='R', right='L', top='A', bottom='P', aspect=1.0)
    """

    plane: str
    left: str
    right: str
    top: str
    bottom: str
    aspect: float = 1.0


class View(NamedTuple):
    """What is drawn of an image and its maps: (C, H, W), (H, W) or (K, H, W) each; `sides` None without an orientation."""

    image: NDArray[Any]
    maps: tuple[NDArray[Any], ...]
    sides: Sides | None


def view(volume: Volume, *maps: NDArray[Any], across: int | None = None) -> View:
    """The same picture of an image and of maps on its grid, in the radiological convention where the file says how it lies.

    Of a volume the slice is the one with the most foreground in the first map that has any, axial, or across the axis that is
    coarsest by far: the other two show more; or across the axis that is asked for, of those along which the image is turned.
    Of a volume's channels the first is kept.

    Shape:
        (C, *S), (*S) or (K, *S), ... -> (C, H, W), (H, W) or (K, H, W), ...
    """
    if volume.affine is None:
        along = (
            [volume.array, *maps] if across is None else [np.moveaxis(a, across - 3, -1) for a in (volume.array, *maps)]
        )
        image, *rest = flat(*along)
        return View(image, tuple(rest), None)
    dims, turn = volume.spatial_dims, to_canonical(volume.affine, volume.spatial_dims)
    arrays = [turn.forward(one) for one in (volume.array, *maps)]
    worlds, spacing = world_of(volume.affine, dims), turn.order(volume.spacing)
    if dims == 3:
        coarsest = int(np.argmax(spacing))
        if across is None:
            across = coarsest if spacing[coarsest] > COARSE * sorted(spacing)[1] else 2
        whole = [one if one.ndim == 3 else np.any(one, axis=0) for one in arrays[1:]]
        guide = next((one for one in whole if one.any()), whole[0] if whole else arrays[0][0])
        index = best_slice(np.moveaxis(guide, across, -1))[1]
        arrays = [np.take(one, index, axis=across - 3) for one in (arrays[0][:1], *arrays[1:])]
        worlds = tuple(world for axis, world in enumerate(worlds) if axis != across)
        spacing = tuple(step for axis, step in enumerate(spacing) if axis != across)
    # both axes run towards R, A or S, which belong on the left or on top
    image, *rest = (np.flip(one.swapaxes(-2, -1), (-2, -1)) for one in arrays)
    (right, left), (bottom, top) = (ENDS[world] for world in worlds)
    return View(image, tuple(rest), Sides(PLANES[worlds], left, right, top, bottom, spacing[1] / spacing[0]))


def best_slice(labels: NDArray[Any]) -> tuple[int, int]:
    """(axis, index) of the slice along the last axis with the most foreground; the middle one where there is none.

    Example:
        >>> volume = np.zeros((4, 4, 5)); volume[1:3, 1:3, 3] = 1
        >>> best_slice(volume), best_slice(np.zeros((4, 4, 5)))
        ((2, 3), (2, 2))
    """
    axis = labels.ndim - 1
    area = np.count_nonzero(labels, axis=tuple(range(axis)))
    return axis, int(area.argmax()) if area.any() else labels.shape[axis] // 2


def flat(image: NDArray[Any], *labels: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """What can be drawn: 2D arrays as they are; of a volume the same slice of everything, turned upright.

    The slice is the one with the most foreground in the first label map that has any. Of a volume's channels the first
    is kept, for three of them are seldom a colour.

    Shape:
        (C, *S), (*S) or (K, *S) for overlapping classes, ... -> (C, H, W), (H, W) or (K, H, W), ...
    """
    if image.ndim == 3:
        return image, *labels
    whole: list[NDArray[Any]] = [one if one.ndim == 3 else np.any(one, axis=0) for one in labels]
    axis, index = best_slice(next((one for one in whole if one.any()), whole[0] if whole else image[0]))
    cut = [np.take(array, index, axis=axis - 3) for array in (image[:1], *labels)]
    return tuple(np.rot90(array, axes=(-2, -1)) for array in cut)
