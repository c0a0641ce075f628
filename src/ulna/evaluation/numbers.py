"""The objects of a structure as their map numbers them, for scores by objects: touching ones are not one."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ulna.data.formats.label_maps import without_colour
from ulna.data.volume import Volume
from ulna.evaluation.objects import objects_of
from ulna.evaluation.surfaces import Mask
from ulna.recipe import Labels


def numbers_of(stored: Volume | None, read: Labels, mask: Mask) -> NDArray[Any]:
    """The objects of the one structure, numbered: as its map has them, else its connected components.

    Args:
        stored: the map as it was read; None: there is none, and the mask is empty.
        read: how it was read; `instances` says that it numbers objects.
        mask: (*S), the structure in it, where the class is known.
    """
    if stored is None or not read.instances:
        return objects_of(mask)
    return np.where(mask, without_colour(stored)[0], 0)
