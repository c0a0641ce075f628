"""The values of a CT that a picture shows: from air to bone, they leave no contrast for what was segmented."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ulna.data.volume import Volume

SAMPLED = 1 << 20  # values that are looked at
WITHIN = 0.02  # of them must lie in a window, else the file's values are no Hounsfield units


class Window(NamedTuple):
    """From which value (black) to which (white), in Hounsfield units."""

    low: float
    high: float


LUNG, SOFT, BONE = Window(-1350, 150), Window(-160, 240), Window(-500, 1300)


def ct_window(volume: Volume, mask: NDArray[Any]) -> Window | None:
    """The window that radiologists use for what a mask covers, by the median of its values; soft tissue for an empty mask.

    None where the file does not say that it is a CT, or its values cannot be Hounsfield units.

    Shape:
        mask: (*S) or (K, *S)
    """
    if volume.meta.modality != "CT" or volume.channels != 1:
        return None
    step = max(1, round((volume.array.size / SAMPLED) ** (1 / volume.spatial_dims)))
    some: tuple[Any, ...] = (..., *[slice(None, None, step)] * volume.spatial_dims)
    values, where = volume.array[some][0], mask[some] != 0
    if where.ndim > values.ndim:
        where = where.any(axis=0)
    covered = float(np.median(values[where])) if where.any() else 0.0
    window = LUNG if covered < -400 else BONE if covered > 250 else SOFT
    inside = np.mean((values > window.low) & (values < window.high))
    return window if inside >= WITHIN else None
