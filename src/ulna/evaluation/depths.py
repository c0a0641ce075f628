"""How deep every voxel of a mask lies in it, a part at a time: scipy's distance transform, with a fifth of its memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from ulna.evaluation.surfaces import AT_ONCE, Mask, parts


def depths(mask: Mask, spacing: Sequence[float]) -> Iterator[tuple[tuple[slice, ...], NDArray[np.float64]]]:
    """Parts of the mask, and the distance of each of their voxels to the nearest one outside the mask.

    The same to the bit as `distance_transform_edt`, whose arithmetic it repeats on the indices of the nearest voxels: all of
    these are held (4 bytes an axis), and not their differences in float64.

    Args:
        mask: (*S), with a voxel outside.
        spacing: along every axis.
    """
    near = distance_transform_edt(mask, sampling=spacing, return_distances=False, return_indices=True)
    for here in parts(mask.shape, AT_ONCE):
        squares = np.zeros(mask[here].shape)
        for axis, (indices, step) in enumerate(zip(near, spacing, strict=True)):
            own = np.arange(mask.shape[axis])[here[axis] if axis < len(here) else slice(None)]
            apart = (indices[here] - np.expand_dims(own, [a for a in range(mask.ndim) if a != axis])).astype(np.float64)
            apart *= step
            squares += np.multiply(apart, apart, out=apart)
        yield here, np.sqrt(squares, out=squares)
