"""What the header of a .mha or .nrrd file states, the same for both formats, and how its numbers are read.

Readers of headers raise ValueError or KeyError for what is not as the format says; `stored` tells the file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ulna.data.formats.source import AGAIN, data_error

LONGEST_HEADER = 1 << 20
MOST_AXES = 16  # of a NRRD file; MetaImage has 10
SAVE = "save it again as one binary file, raw or gzip-compressed"
NO_TYPE = "save it with integer or real values"
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_WHOLE = re.compile(r"[+-]?\d+", re.ASCII)


class Geometry(NamedTuple):
    """Where the voxels lie, in coordinates to the left, to the back and up (LPS), as ITK counts.

    Args:
        origin: (S,), of the first voxel, for S axes.
        spacing: (S,), between neighbours along every axis.
        direction: (S, S), a column an axis, of length 1.
    """

    origin: NDArray[np.float64]
    spacing: NDArray[np.float64]
    direction: NDArray[np.float64]


class ItkStored(NamedTuple):
    """What a map needs to be written where an image lies.

    Args:
        size: voxels along the axes of space, also where a volume of one slice is read as 2D.
        geometry: of these axes, in millimetres.
    """

    size: tuple[int, ...]
    geometry: Geometry


class Header(NamedTuple):
    """What a header states.

    Args:
        sizes: of all axes of the file, the fastest first; channels are one of them.
        channels: the axis that holds the channels; None for none.
        dtype: of the values as stored.
        window: of zlib, 15 for its own frame, 31 for gzip's; None for raw values.
        start: the first byte of the values.
        length: bytes of packed values, where the header says so.
        geometry: of all other axes, in the unit of the header.
        spaced: the header states how far the voxels lie apart.
        oriented: the header states how the axes lie in the body; ITK assumes LPS where it does not.
        millimetres: in the unit that the header states, 1 where it states none.
    """

    sizes: tuple[int, ...]
    channels: int | None
    dtype: np.dtype[Any]
    window: int | None
    start: int
    length: int | None
    geometry: Geometry
    spaced: bool
    oriented: bool
    millimetres: float = 1.0


def whole(name: str, text: str) -> int:
    """The whole number that a field gives.

    Raises:
        ValueError: if it gives none.
    """
    if not _WHOLE.fullmatch(text):
        raise ValueError(f"{name} is {text[:40]!r}, which is no whole number")
    return int(text)


def numbers(name: str, words: Sequence[str], count: int, *, unknown: bool = False) -> NDArray[np.float64]:
    """The `count` numbers that a field gives; with `unknown`, some may be NaN.

    Raises:
        ValueError: if there are more or fewer, or one is no number.

    Example:
        >>> numbers("Offset", ["1", "-2.5e3"], 2).tolist()
        [1.0, -2500.0]
    """
    words = [word.strip() for word in words]
    sound = (_NUMBER.fullmatch(word) or (unknown and word.lower() == "nan") for word in words)
    values = np.array([float(word) for word in words]) if len(words) == count and all(sound) else np.full(1, np.inf)
    if np.isinf(values).any():
        raise ValueError(f"{name} is {' '.join(words)[:80]!r}, where {count} numbers belong")
    return values


def sizes_of(path: object, text: str, dimensions: int) -> tuple[int, ...]:
    """The sizes of all axes.

    Raises:
        DataError: if there are not as many as dimensions, too many, or one is below 1.
        ValueError: if one is no number.
    """
    sizes = tuple(whole("a size", word) for word in text.split())
    if len(sizes) != dimensions or not 1 <= dimensions <= MOST_AXES or min(sizes) < 1:
        raise data_error(path, f"declares the sizes {text[:80]!r} for {dimensions} axes", AGAIN)
    return sizes
