"""Volume: an image with its place in the world, and what its file says for the way back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_VOXELS = 1 << 33  # of an image that is read


@dataclass(frozen=True, eq=False)
class Volume:
    """Pixels or voxels, and where they lie; the axes keep the order of the file.

    Args:
        array: (C, *S), *S of length 2 or 3.
        spacing: distance between neighbours along every spatial axis, in `unit`.
        unit: "mm", or "px" where the file states no physical size.
        affine: (4, 4), voxel index -> RAS mm; None where the file has none.
        path: the file it came from.
        suffix: the ending that a mask of it gets.
        stored: what the writer of this format needs.
    """

    array: NDArray[Any]
    spacing: tuple[float, ...]
    unit: str = "px"
    affine: NDArray[np.float64] | None = None
    path: Path | None = None
    suffix: str = ".npy"
    stored: object = None

    @property
    def size(self) -> tuple[int, ...]:
        """*S: pixels or voxels along every spatial axis."""
        return self.array.shape[1:]

    @property
    def name(self) -> object:
        """As messages call it."""
        return self.path or "the image"


def label_dtype(highest: int) -> np.dtype[Any]:
    """The smallest unsigned integer type that holds `highest`."""
    return np.dtype(np.min_scalar_type(max(int(highest), 0)))
