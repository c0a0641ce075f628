"""Boundary IoU: the IoU of what lies along the contours of two masks, which large structures cannot hide."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.ndimage import distance_transform_cdt

from ulna.evaluation.depths import depths
from ulna.evaluation.surfaces import Mask, bounding_box

SHARE_OF_DIAGONAL = 0.02  # in images, of the diagonal in pixels
VOLUME_WIDTH = 2.0  # in volumes, in the unit of the spacing: twice the tolerance of the NSD


def boundary_iou(
    prediction: Mask,
    reference: Mask,
    spacing: Sequence[float],
    empty_score: float | None = None,
    size: Sequence[int] | None = None,
) -> float:
    """The IoU of the bands along the inside of both contours; 0 where one mask is empty, NaN or `empty_score` where both are.

    The band of an image is what as many erosions by a 3x3 square take away as 2 % of its diagonal has pixels; that of a
    volume is 2 mm wide, and at least one voxel. Beyond the border of the image is outside. `size` is that of the whole image,
    where the masks are a box of it.

    Source: boundary IoU (cheng2021), Eq. 2, width and erosion of the authors' public code. Reading: volumes.
    """
    if not prediction.any() and not reference.any():
        return math.nan if empty_score is None else empty_score
    ours, theirs = (_band(mask, spacing, size or prediction.shape) for mask in (prediction, reference))
    return float(np.count_nonzero(ours & theirs) / np.count_nonzero(ours | theirs))


def _band(mask: Mask, spacing: Sequence[float], size: Sequence[int]) -> Mask:
    band = np.zeros_like(mask)
    if not mask.any():
        return band
    box = bounding_box(mask)
    body = np.pad(mask[box], 1)
    if mask.ndim == 2:
        width = max(1.0, round(SHARE_OF_DIAGONAL * math.hypot(*size)))
        near = distance_transform_cdt(body, metric="chessboard") <= width * (1 + 1e-6)
    else:
        width, near = max(VOLUME_WIDTH, *spacing), np.zeros_like(body)
        for here, depth in depths(body, spacing):
            near[here] = depth <= width * (1 + 1e-6)
    band[box] = (body & near)[(slice(1, -1),) * mask.ndim]
    return band
