"""Label maps and images to .mha and .nrrd: the headers that ITK writes, line by line, and packed values."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ulna.data.formats.itk_header import Geometry, ItkStored
from ulna.data.formats.meta_image import META_TYPES
from ulna.data.formats.nrrd import NRRD_TYPES
from ulna.data.formats.source import suffix_of
from ulna.data.volume import Volume

_LEVEL = 2  # as ITK packs


def write_itk(path: Path, maps: NDArray[Any], like: Volume) -> None:
    """Write (*S) or (K, *S) with the geometry of `like`, packed, as ITK does; K maps are components."""
    stored = like.meta.stored
    assert isinstance(stored, ItkStored)
    size, geometry = stored
    channels = len(maps) if maps.ndim > like.spatial_dims else 1
    values = maps.reshape(*([channels] if channels > 1 else []), *size)
    values = values.astype(values.dtype.newbyteorder("<"), copy=False)
    if suffix_of(path) == ".nrrd":
        parts = _packed(values, 31)
        header = _nrrd(values.dtype, size, channels, geometry)
    else:
        parts = _packed(values, 15)
        header = _meta_image(values.dtype, size, channels, geometry, sum(map(len, parts)))
    with path.open("wb") as file:
        file.writelines([header, *parts])


def _packed(values: NDArray[Any], window: int) -> list[bytes]:
    """Values packed by zlib in the order of a file, the first axis the fastest; a part of the last axis at a time.

    Args:
        window: of zlib, 15 for its own frame, 31 for gzip's.
    """
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, window)
    parts = [packer.compress(np.ascontiguousarray(part.T).data) for part in np.moveaxis(values, -1, 0)]
    return [*parts, packer.flush()]


def _meta_image(dtype: np.dtype[Any], sizes: Sequence[int], channels: int, geometry: Geometry, packed: int) -> bytes:
    """The header of a file of values packed by zlib, as ITK writes it.

    Args:
        dtype: of the values, little-endian.
        sizes: along the S axes of space.
        channels: values a voxel.
        geometry: of the S axes.
        packed: bytes of the packed values.
    """
    dims, type_name = len(sizes), {kind: name for name, kind in reversed(META_TYPES.items())}[dtype.str[1:]]
    letters = _letters(geometry.direction) if dims == 3 else "?" * dims
    where = ["AnatomicalOrientation = " + letters]  # a note for readers, after the direction or, in 2D, after the sizes
    lines = [
        "ObjectType = Image",
        f"NDims = {dims}",
        "BinaryData = True",
        "BinaryDataByteOrderMSB = False",
        "CompressedData = True",
        f"CompressedDataSize = {packed}",
        f"TransformMatrix = {_digits(geometry.direction.T.ravel())}",
        f"Offset = {_digits(geometry.origin)}",
        f"CenterOfRotation = {_digits(np.zeros(dims))}",
        *(where if dims == 3 else []),
        f"ElementSpacing = {_digits(geometry.spacing)}",
        f"DimSize = {' '.join(map(str, sizes))}",
        *([] if dims == 3 else where),
        *([f"ElementNumberOfChannels = {channels}"] if channels > 1 else []),
        f"ElementType = {type_name}",
        "ElementDataFile = LOCAL\n",
    ]
    return "\n".join(lines).encode("ascii")


def _letters(direction: NDArray[np.float64]) -> str:
    """Where every axis comes from, right or left, front or back, below or above; the closest axes of the body, each once.

    Example:
        >>> _letters(np.eye(3))
        'RAI'
    """
    weights, letters = np.abs(direction), [""] * 3
    for _ in range(3):
        row, column = max(np.ndindex(3, 3), key=lambda at: (weights[at], at))
        letters[column] = ("RAI" if direction[row, column] > 0 else "LPS")[row]
        weights[row], weights[:, column] = -1, -1
    return "".join(letters)


def _nrrd(dtype: np.dtype[Any], sizes: Sequence[int], channels: int, geometry: Geometry) -> bytes:
    """The header of a file of values packed by gzip, as ITK writes it.

    Args:
        dtype: of the values, little-endian.
        sizes: along the S axes of space.
        channels: values a voxel.
        geometry: of the S axes.
    """
    several, dims = channels > 1, len(sizes)
    directions = (f"({_digits(column, ',')})" for column in (geometry.direction * geometry.spacing).T)
    lines = [
        "NRRD0004",
        "# Complete NRRD file format specification at:",
        "# http://teem.sourceforge.net/nrrd/format.html",
        f"type: {NRRD_TYPES[dtype.str[1:]].split('|')[0]}",
        f"dimension: {dims + several}",
        "space: left-posterior-superior" if dims == 3 else f"space dimension: {dims}",
        f"sizes: {' '.join(map(str, (channels, *sizes) if several else sizes))}",
        f"space directions: {' '.join([*(['none'] if several else []), *directions])}",
        f"kinds: {' '.join([*(['vector'] if several else []), *['domain'] * dims])}",
        *(["endian: little"] if dtype.itemsize > 1 else []),
        "encoding: gzip",
        f"space origin: ({_digits(geometry.origin, ',')})",
        "\n",
    ]
    return "\n".join(lines).encode("ascii")


def _digits(values: Sequence[float] | NDArray[np.float64], separator: str = " ") -> str:
    """Numbers in text, so that the same numbers are read from it.

    Example:
        >>> _digits([0.1, 2.0, 0.5], ",")
        '0.10000000000000001,2,0.5'
    """
    return separator.join(f"{value:.17g}" for value in values)
