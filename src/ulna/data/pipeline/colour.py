"""Grey pictures for a network of colour pictures, and the reverse."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ulna.data.volume import Volume
from ulna.recipe import Plan

LUMA = (0.299, 0.587, 0.114)  # of red, green and blue in grey: ITU-R BT.601, as Pillow has it


def is_colour(volume: Volume) -> bool:
    """Whether an image is a picture of red, green and blue."""
    picture = volume.meta.format == "raster" or volume.meta.colour
    return picture and volume.spatial_dims == 2 and volume.channels == 3


def as_trained(volume: Volume, plan: Plan) -> tuple[Volume, str]:
    """A picture with the channels that the pictures of the training had, and what was done; empty where nothing was.

    Only pictures are converted: channels of other images may be anything.
    """
    if plan.image_dims != 2 or volume.spatial_dims != 2 or volume.channels == plan.in_channels:
        return volume, ""
    if plan.in_channels == 1 and is_colour(volume):
        done = "is in colour, and read as grey, as the images of the training are"
        return volume.with_array(to_grey(volume.array)), done
    if plan.colour and volume.channels == 1 and volume.meta.format in ("raster", "tiff"):
        done = "is grey, and read as colour (red, green and blue alike), as the images of the training are"
        return volume.with_array(np.repeat(volume.array, plan.in_channels, axis=0)), done
    return volume, ""


def to_grey(array: NDArray[Any]) -> NDArray[Any]:
    """(3, H, W) -> (1, H, W) of the same type."""
    if (array == array[:1]).all():  # without what rounding adds
        return array[:1]
    grey = np.tensordot(np.array(LUMA), array.astype(np.float64), axes=1)
    return (np.rint(grey) if array.dtype.kind in "iu" else grey)[None].astype(array.dtype)
