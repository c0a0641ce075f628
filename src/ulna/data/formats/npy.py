"""One array a file: `.npy` with (*S) or (*S, C), without units."""

from __future__ import annotations

import math
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from ulna.data.formats.limits import check_memory, check_pixels, check_promise
from ulna.data.formats.slabs import Float32, fill, native
from ulna.data.formats.source import AGAIN, data_error, file_stat, first_line, suffix_of
from ulna.data.volume import Meta, Volume

MOST_COLOURS = 4  # a last axis up to this long is colour
NUMBERS = "iufb"


def read_npy(path: Path, spatial_dims: int | None = None) -> Volume:
    """(C, *S) in pixels. (H, W) and (D, H, W) are one channel; the last of four axes holds the channels.

    Where the last of three axes is up to 4 long, the array is a colour picture or a volume of few slices, as `spatial_dims`
    says; left out, it is a picture.

    Raises:
        DataError: if the file holds anything but numbers, or not exactly as many bytes as its header promises.
    """
    size = file_stat(path).st_size
    with path.open("rb") as file:
        header = array_header(path, file, "an array", NUMBERS)
        shape, dtype = header.shape, header.dtype
        check_pixels(path, shape)
        expected, held = math.prod(shape) * dtype.itemsize, size - file.tell()
        cut = f"is cut short: the header promises {shape} in {expected} bytes, {held} follow"
        check_promise(path, cut, expected, held, packed=False)
        if expected < held:
            raise data_error(path, f"is damaged: {held - expected} bytes follow its array of {shape}", AGAIN)
        if len(shape) not in (2, 3, 4):
            raise data_error(path, f"has the shape {shape}", "save (*S) or (*S, C) of a 2D or 3D image")
        check_memory(path, math.prod(shape) * native(dtype).itemsize)
        array, large = _values(file, header)
    array = _channels_first(array, spatial_dims)
    either = len(shape) == 3 and shape[-1] <= MOST_COLOURS
    meta = Meta(format="npy", suffix=suffix_of(path), too_large=large, either=either)
    return Volume(array, (1.0,) * (array.ndim - 1), "px", None, path, meta)


def _values(file: IO[bytes], header: Header) -> tuple[NDArray[Any], tuple[int, float] | None]:
    """What follows the header, by slabs; and how many values float32 does not hold."""
    array = np.empty(header.shape, native(header.dtype))
    convert = Float32() if header.dtype.kind == "f" else None
    fill(array if header.fortran else array.T, file.read, header.dtype, convert)
    return array, convert.too_large if convert is not None else None


class Header(NamedTuple):
    """What stands before the values of an array in numpy's format.

    Args:
        fortran: the first axis is the fastest.
    """

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]


def array_header(path: Path, file: IO[bytes], what: str, kinds: str) -> Header:
    """Read the header of an array in numpy's format.

    Raises:
        DataError: if the header cannot be read, or its type is of none of the `kinds`.
    """
    wanted = "save it as numbers" if kinds == NUMBERS else "save ids with dtype=str"
    try:
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except Exception as error:  # numpy raises nearly every type on damaged headers
        raise data_error(path, f"has {what} that cannot be read ({first_line(error)})", AGAIN) from None
    if dtype.hasobject or dtype.kind not in kinds:
        raise data_error(path, f"has {what} of type {dtype}", wanted)
    if any(n < 0 for n in shape):
        raise data_error(path, f"has {what} of the shape {shape}", AGAIN)
    return Header(tuple(int(n) for n in shape), bool(fortran), dtype)


def _channels_first(array: NDArray[Any], spatial_dims: int | None) -> NDArray[Any]:
    colour = array.ndim == 3 and array.shape[-1] <= MOST_COLOURS and spatial_dims != 3
    array = np.moveaxis(array, -1, 0) if colour or array.ndim == 4 else array[None]
    return np.ascontiguousarray(array)


def write_npy(path: Path, maps: NDArray[Any], like: Volume) -> None:
    """Write (*S), or (K, *S) as (*S, K)."""
    with path.open("wb") as file:
        np.save(file, np.moveaxis(maps, 0, -1) if maps.ndim > like.spatial_dims else maps)
