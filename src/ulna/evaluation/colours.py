"""The colours of every picture: of classes, and an image as RGB. Needs numpy alone: the server has no matplotlib."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

RGB = NDArray[np.uint8]
Colour = tuple[int, int, int]

# Okabe and Ito's palette for colour-blind readers, the colours that show on dark images first
CLASS_COLOURS: tuple[Colour, ...] = (
    (240, 228, 66),
    (86, 180, 233),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (213, 94, 0),
    (0, 114, 178),
)

DARK = 110  # 8-bit colour whose brightest half per cent stays below is drawn brighter


def to_rgb(image: NDArray[Any]) -> RGB:
    """A 2D image as RGB, stretched so that 1 % is black and 1 % is white; 8-bit RGB stays as it is unless it is dark.

    One channel is grey, three are a colour, of any other number the first is shown.

    Shape:
        (C, H, W) -> (H, W, 3)
    """
    if image.ndim != 3:
        raise ValueError(f"image {image.shape} is not (C, H, W)")
    channels = image if image.shape[0] == 3 else image[:1]
    if channels.shape[0] == 3 and image.dtype == np.uint8:
        brightest = float(np.percentile(channels, 99.5))
        if 0 < brightest < DARK:  # fluorescence often fills a tenth of the range: one factor keeps the colours
            channels = np.rint(np.clip(channels * (255 / brightest), 0, 255)).astype(np.uint8)
        return np.ascontiguousarray(np.moveaxis(channels, 0, -1))
    values = channels.astype(np.float64)
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, (1, 99)) if finite.size else (0.0, 1.0)
    if high <= low and finite.size:  # almost every pixel alike: a few bright ones must still show
        low, high = finite.min(), finite.max()
    scaled = (np.nan_to_num(values, nan=low, posinf=high, neginf=low) - low) / ((high - low) or 1.0)
    grey = np.rint(255 * np.clip(scaled, 0, 1)).astype(np.uint8)
    return np.ascontiguousarray(np.moveaxis(np.broadcast_to(grey, (3, *grey.shape[1:])), 0, -1))
