"""The values of TIFF pages that tifffile leaves to an optional package, decoded by libtiff inside Pillow.

Pillow knows a few kinds of pixels only: it halves colours of 16 bits, stretches grey of 2 bits, inverts "white is zero"
and turns pages by their orientation. So packings that store bytes (LZW and its kin) are given to it as a picture of
bytes, with the file's own packed strips, and what comes out is taken apart here: the stored values, whatever they mean.
Fax and JPEG, which pack pixels, are decoded as pictures, in the kinds that Pillow leaves as they are.
"""

from __future__ import annotations

import io
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.TiffImagePlugin import TiffImageFile

from ulna.data.formats.source import data_error
from ulna.data.turning import ORIENTATION, UPRIGHT, as_stored

JPEG_PACKINGS = (6, 7)
_BYTE_PACKINGS = (5, 8, 32773, 32946, 34925, 50000)  # LZW, deflate, PackBits, deflate, LZMA, Zstandard
_FAX = (2, 3, 4)
_PLAIN, _HORIZONTAL, _FLOATING = 1, 2, 3  # predictors
_SEPARATE = 2  # the planar configuration in which every sample has a plane of its own
_REMEDY = "save it without compression"


class _UnreadableError(Exception):
    pass


def decoded(path: Path, series: Any) -> NDArray[Any]:
    """The stored values of a series, in its shape.

    Raises:
        DataError: if nothing here decodes its packing without changing a value.
    """
    try:
        return np.asarray(series.asarray())
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
    name = getattr(series.keyframe.compression, "name", series.keyframe.compression)
    try:
        with path.open("rb") as file:
            planes = [_page(file, page, series.keyframe) for page in series.pages]
    except _UnreadableError as error:
        raise data_error(path, f"is packed as {name}, which is not read with {error}", _REMEDY) from None
    except (OSError, ValueError, SyntaxError, EOFError, struct.error) as error:
        raise data_error(path, f"is packed as {name}, not readable ({error})", _REMEDY) from None
    stacked = np.stack(planes) if len(planes) > 1 else planes[0]
    if stacked.size != math.prod(series.shape):
        raise data_error(path, f"is packed as {name}, which is not read here", _REMEDY)
    return stacked.reshape(series.shape)


def _page(file: Any, page: Any, tags: Any) -> NDArray[Any]:
    """One page of a series; `tags` are those of its first page, which hold for all."""
    if tags.compression in _BYTE_PACKINGS:
        return _from_bytes(file, page, tags)
    if tags.compression in (*_FAX, *JPEG_PACKINGS):
        return _from_picture(file, page.index, tags)
    raise _UnreadableError("no optional package")


def _from_picture(file: Any, index: int, page: Any) -> NDArray[Any]:
    """A page of fax (1 bit) or JPEG (8 bits, grey or colour); Pillow's inversion and turn are taken back."""
    bits, samples = int(page.bitspersample), int(page.samplesperpixel)
    fax = page.compression in _FAX
    if bits != (1 if fax else 8) or samples not in ((1,) if fax else (1, 3)) or page.extrasamples:
        raise _UnreadableError(f"{samples} samples of {bits} bits")
    if samples > 1 and page.planarconfig == _SEPARATE:
        raise _UnreadableError("its colours in separate planes")
    file.seek(0)
    picture = TiffImageFile(io.BytesIO(file.read()))
    picture.seek(index)
    orientation = int(picture.tag_v2.get(ORIENTATION, UPRIGHT))
    picture.load()
    if picture.mode not in ("1", "L", "RGB", "YCbCr"):
        raise _UnreadableError(f"pixels of the kind {picture.mode}")
    array = np.asarray(picture.convert("RGB") if picture.mode == "YCbCr" else picture)
    if page.photometric == 0:
        array = ~array if picture.mode == "1" else 255 - array
    if 2 <= orientation <= 8:
        array = (
            np.moveaxis(as_stored(np.moveaxis(array, -1, 0), orientation), 0, -1)
            if array.ndim == 3
            else (as_stored(array, orientation))
        )
    return np.ascontiguousarray(array)


def _from_bytes(file: Any, page: Any, tags: Any) -> NDArray[Any]:
    bits, samples, predictor = int(tags.bitspersample), int(tags.samplesperpixel), int(tags.predictor)
    separate = tags.planarconfig == _SEPARATE and samples > 1
    together = 1 if separate else samples
    if bits not in (1, 8, 16, 32, 64) or getattr(tags, "fillorder", 1) != 1:
        raise _UnreadableError(f"values of {bits} bits")
    if predictor not in (_PLAIN, _HORIZONTAL, _FLOATING) or (predictor != _PLAIN and bits < 8):
        raise _UnreadableError(f"the predictor {predictor}")
    if tags.is_tiled and (bits < 8 or predictor == _FLOATING):
        raise _UnreadableError(f"tiles of {bits} bits and the predictor {predictor}")
    planes = samples if separate else 1
    count = len(page.dataoffsets) // planes
    arrays = []
    for plane in range(planes):
        chosen = slice(plane * count, (plane + 1) * count)
        rows = _unpacked(file, tags, together, page.dataoffsets[chosen], page.databytecounts[chosen])
        arrays.append(_values(rows, tags, together))
    return np.stack(arrays) if separate else arrays[0]


def _unpacked(file: Any, page: Any, samples: int, offsets: Any, counts: Any) -> NDArray[np.uint8]:
    """Rows of bytes, unpacked: the packed strips or tiles, under a header that calls every byte a pixel."""

    def width(pixels: int) -> int:
        return -(-pixels * samples * int(page.bitspersample) // 8)

    body = bytearray(b"II*\0\0\0\0\0")
    places = []
    for offset, length in zip(offsets, counts, strict=True):
        places.append(len(body))
        file.seek(offset)
        body += file.read(length)
    tags = {256: width(page.imagewidth), 257: page.imagelength, 258: 8, 259: int(page.compression), 262: 1, 277: 1}
    if page.is_tiled:
        tags |= {322: width(page.tilewidth), 323: page.tilelength}
    else:
        tags |= {278: page.rowsperstrip}
    lists = {324 if page.is_tiled else 273: places, 325 if page.is_tiled else 279: list(counts)}
    entries = {tag: struct.pack("<HHII", tag, 4, 1, int(value)) for tag, value in tags.items()}
    for tag, values in lists.items():
        data = struct.pack(f"<{len(values)}I", *map(int, values))
        at = int.from_bytes(data, "little") if len(values) == 1 else len(body)
        body += data if len(values) > 1 else b""
        entries[tag] = struct.pack("<HHII", tag, 4, len(values), at)
    body[4:8] = struct.pack("<I", len(body))
    body += struct.pack("<H", len(entries)) + b"".join(entries[tag] for tag in sorted(entries)) + bytes(4)
    picture = TiffImageFile(io.BytesIO(bytes(body)))
    picture.load()
    return np.asarray(picture)


def _values(rows: NDArray[np.uint8], page: Any, samples: int) -> NDArray[Any]:
    """(H, bytes) -> (H, W) or (H, W, samples): the predictor undone, the bytes put together in the file's order."""
    bits, predictor = int(page.bitspersample), int(page.predictor)
    height, width = len(rows), int(page.imagewidth)
    if bits == 1:
        array = np.unpackbits(rows, axis=1)[:, : width * samples]
    elif predictor == _FLOATING:
        array = _without_floating_predictor(rows, samples, bits // 8).view(page.dtype)
    else:
        kind = np.dtype(f"u{bits // 8}").newbyteorder(page.parent.byteorder)
        array = np.ascontiguousarray(rows).view(kind).astype(kind.newbyteorder("="))
        if predictor == _HORIZONTAL:
            array = array.reshape(height, width, samples)
            step = int(page.tilewidth) if page.is_tiled else width
            for start in range(0, width, step):
                part = array[:, start : start + step]
                np.cumsum(part, axis=1, dtype=part.dtype, out=part)
        array = array.view(page.dtype.newbyteorder("="))
    shape = (height, width) if samples == 1 else (height, width, samples)
    return array.reshape(shape)


def _without_floating_predictor(rows: NDArray[np.uint8], samples: int, size: int) -> NDArray[np.uint8]:
    """Real values whose bytes were sorted by weight, the heaviest first, and then stored as differences."""
    height, length = rows.shape
    summed = np.cumsum(rows.reshape(height, -1, samples), axis=1, dtype=np.uint8)
    planes = summed.reshape(height, size, length // size)
    planes = planes[:, ::-1] if np.little_endian else planes
    return np.ascontiguousarray(planes.transpose(0, 2, 1)).reshape(height, length)
