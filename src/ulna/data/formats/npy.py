"""One array a file: `.npy` with (*S) or (*S, C), without units."""

from __future__ import annotations

import math
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from ulna.data.formats.limits import check_memory, check_pixels
from ulna.data.formats.raw_boxes import Boxes, RawFile, Reordered
from ulna.data.formats.slabs import SLAB, Float32, fill, native
from ulna.data.formats.source import AGAIN, data_error, file_stat, first_line, suffix_of
from ulna.data.formats.whole_boxes import Boxed, slabs_along
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
    with path.open("rb") as file:
        header = _checked(path, file)
        check_memory(path, math.prod(header.shape) * native(header.dtype).itemsize)
        array, large = _values(file, header)
    array = np.ascontiguousarray(_channels_first(array, spatial_dims))
    return _volume(path, array, header.shape, large)


def open_npy(path: Path, spatial_dims: int | None = None) -> tuple[Volume, Boxes]:
    """The geometry of a file, in a volume without memory, and its boxes; see `read_npy`."""
    file = path.open("rb")
    try:
        header = _checked(path, file)
    except BaseException:
        file.close()
        raise
    shape, scaled = header.shape, Float32() if header.dtype.kind == "f" else None
    raw = RawFile(file, file.tell(), header.dtype, shape if header.fortran else shape[::-1], scaled)
    axes = list(range(len(shape))) if header.fortran else list(reversed(range(len(shape))))
    moved = _channels_first(np.broadcast_to(np.zeros((), native(header.dtype)), shape), spatial_dims)
    coloured = moved.ndim - 1 < len(shape)
    order = [axes[-1], *axes[:-1]] if coloured else [None, *axes]
    return _volume(path, moved, shape, None), Reordered(raw, order)


def _checked(path: Path, file: IO[bytes]) -> Header:
    """The header, where as many bytes follow as it promises."""
    size = file_stat(path).st_size
    header = array_header(path, file, "an array", NUMBERS)
    shape, dtype = header.shape, header.dtype
    check_pixels(path, shape)
    expected, held = math.prod(shape) * dtype.itemsize, size - file.tell()
    if expected > held:
        raise data_error(path, f"is cut short: the header promises {shape} in {expected} bytes, {held} follow", AGAIN)
    if expected < held:
        raise data_error(path, f"is damaged: {held - expected} bytes follow its array of {shape}", AGAIN)
    if len(shape) not in (2, 3, 4):
        raise data_error(path, f"has the shape {shape}", "save (*S) or (*S, C) of a 2D or 3D image")
    return header


def _volume(path: Path, array: NDArray[Any], shape: tuple[int, ...], large: tuple[int, float] | None) -> Volume:
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
    return np.moveaxis(array, -1, 0) if colour or array.ndim == 4 else array[None]


def write_npy(path: Path, maps: NDArray[Any], like: Volume) -> None:
    """Write (*S), or (K, *S) as (*S, K)."""
    with path.open("wb") as file:
        np.save(file, np.moveaxis(maps, 0, -1) if maps.ndim > like.spatial_dims else maps)


def write_npy_slabs(path: Path, maps: Boxed, *, channels: bool) -> None:
    """The same of maps that are read some rows at a time."""
    count, *size = maps.shape
    shape = (*size, count) if channels else tuple(size)
    with path.open("wb") as file:
        header = {"descr": npy.dtype_to_descr(maps.dtype), "fortran_order": False, "shape": shape}
        npy.write_array_header_1_0(file, header)
        for _, part in slabs_along(maps, 0, SLAB):
            file.write((np.moveaxis(part, 0, -1) if channels else part[0]).tobytes())
