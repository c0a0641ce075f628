"""The values of .mha and .nrrd files, read from their bytes: every byte is counted, every checksum is compared.

ITK fills a file that was cut short with zeros and says nothing, so its readers are asked for the geometry only.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ulna.data.formats.limits import check_memory, check_pixels, check_promise
from ulna.data.formats.slabs import Float32, fill, native
from ulna.data.formats.source import AGAIN, data_error
from ulna.data.formats.units import millimetres_in
from ulna.errors import DataError

_SAVE = "save it again as one binary file, raw or gzip-compressed"
_META_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
_NRRD_TYPES = {
    "i1": "signed char|int8|int8_t",
    "u1": "uchar|unsigned char|uint8|uint8_t",
    "i2": "short|short int|signed short|signed short int|int16|int16_t",
    "u2": "ushort|unsigned short|unsigned short int|uint16|uint16_t",
    "i4": "int|signed int|int32|int32_t",
    "u4": "uint|unsigned int|uint32|uint32_t",
    "i8": "longlong|long long|long long int|signed long long|signed long long int|int64|int64_t",
    "u8": "ulonglong|unsigned long long|unsigned long long int|uint64|uint64_t",
    "f4": "float",
    "f8": "double",
}
_LONGEST_HEADER = 1 << 20
_CHUNK = 1 << 20


class Stored(NamedTuple):
    """What a file stores.

    Args:
        values: with the axes of the file, the fastest first; real values are float32.
        sizes: of all axes; channels are one of them.
        spaced: the header states how far the voxels lie apart.
        oriented: the header states how the axes lie in the body; ITK assumes LPS where it does not.
        too_large: how many values float32 does not hold, and the largest; None for none.
        millimetres: in the unit that the header states, 1 where it states none.
    """

    values: NDArray[Any]
    sizes: tuple[int, ...]
    spaced: bool
    oriented: bool = True
    too_large: tuple[int, float] | None = None
    millimetres: float = 1.0


class _Header(NamedTuple):
    sizes: tuple[int, ...]
    dtype: np.dtype[Any]
    window: int | None  # of zlib: 15 for its own frame, 31 for gzip's; None for raw values
    start: int
    length: int | None  # bytes of packed values, where the header says so
    spaced: bool
    oriented: bool
    millimetres: float = 1.0


def stored(path: Path) -> Stored:
    """Read a .mha or .nrrd file.

    Raises:
        DataError: if the header cannot be read, or the bytes are not exactly what it promises.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(_LONGEST_HEADER)
        try:
            header = _nrrd(path, start) if start.startswith(b"NRRD") else _meta_image(path, start)
        except DataError:
            raise
        except (ValueError, KeyError, OverflowError) as error:
            raise data_error(path, f"has a header that cannot be read ({error})", AGAIN) from None
        return _read_values(path, file, header, size - header.start)


def _read_values(path: Path, file: IO[bytes], header: _Header, held: int) -> Stored:
    expected = math.prod(header.sizes) * header.dtype.itemsize
    if header.length is not None and header.length != held:
        how = "is cut short" if header.length > held else "is damaged"
        raise data_error(path, f"{how}: the header promises {header.length} packed bytes, {held} follow", AGAIN)
    promise = f"is cut short: the header promises {expected} bytes of values, the file holds {held}"
    check_pixels(path, header.sizes)
    check_promise(path, promise, expected, held, packed=header.window is not None)
    if header.window is None and held > expected:
        what = f"is damaged: the header promises {expected} bytes of values, the file holds {held}"
        raise data_error(path, what, AGAIN)
    values = np.empty(header.sizes, native(header.dtype))
    check_memory(path, values.nbytes)
    convert = Float32() if header.dtype.kind == "f" else None
    file.seek(header.start)
    if header.window is None:
        fill(values, file.read, header.dtype, convert)
    else:
        stream = _Inflated(path, file, header.window)
        found = fill(values, stream.read, header.dtype, convert)
        stream.end(found, expected)
    large = convert.too_large if convert is not None else None
    return Stored(values, header.sizes, header.spaced, header.oriented, large, header.millimetres)


class _Inflated:
    """What zlib has packed, unpacked as it is asked for."""

    def __init__(self, path: Path, file: IO[bytes], window: int) -> None:
        self.path, self.file = path, file
        self.unpacker = zlib.decompressobj(window)

    def read(self, count: int) -> bytearray:
        """Up to `count` bytes; fewer where the stream ends.

        Raises:
            DataError: if the packed bytes are damaged.
        """
        data = bytearray()
        while len(data) < count and not self.unpacker.eof:
            packed = self.unpacker.unconsumed_tail or self.file.read(_CHUNK)
            if not packed:
                break
            try:
                data += self.unpacker.decompress(packed, count - len(data))
            except zlib.error as error:
                raise data_error(self.path, f"is damaged ({error})", AGAIN) from None
        return data

    def end(self, found: int, expected: int) -> None:
        """Judge the end of the stream, where the checksum stands; what goes on is not unpacked.

        Raises:
            DataError: if there is more or less than expected.
        """
        more = len(self.read(1)) if found == expected else 0  # on to the checksum
        if found + more > expected:
            raise data_error(
                self.path, f"is damaged: more than the {expected} bytes of its header are packed in it", AGAIN
            )
        if not self.unpacker.eof:
            raise data_error(self.path, "is cut short: the compressed data end too early", AGAIN)
        if found < expected:
            what = f"is cut short: the header promises {expected} bytes of values, the file holds {found}"
            raise data_error(self.path, what, AGAIN)
        if self.unpacker.unused_data or self.file.read(1):
            raise data_error(self.path, "is damaged: bytes follow the compressed values", AGAIN)


def _meta_image(path: Path, data: bytes) -> _Header:
    fields: dict[str, str] = {}
    start = 0
    while "elementdatafile" not in fields:
        end = data.find(b"\n", start, start + _LONGEST_HEADER)
        if end < 0:
            raise data_error(path, "is cut short or no MetaImage: its header does not end", AGAIN)
        key, separator, value = data[start:end].decode("latin-1").partition("=")
        if not separator:
            raise data_error(path, "is not a MetaImage file", "give the file its right extension, or convert it")
        fields[key.strip().lower()] = value.strip()
        start = end + 1
    if fields["elementdatafile"].upper() != "LOCAL":
        raise data_error(path, f"keeps its values in another file ({fields['elementdatafile'][:80]})", _SAVE)
    if not _true(fields.get("binarydata", "True")) or int(fields.get("headersize", "0")) != 0:
        raise data_error(path, "stores its values as text, or apart from its header", _SAVE)
    channels = int(fields.get("elementnumberofchannels", "1"))
    sizes = _sizes(path, fields["dimsize"], int(fields["ndims"]))
    kind = _META_TYPES.get(fields["elementtype"].upper())
    if kind is None:
        raise data_error(
            path, f"holds values of type {fields['elementtype'][:40]}", "save it with integer or real values"
        )
    big = _true(fields.get("binarydatabyteordermsb", fields.get("elementbyteordermsb", "False")))
    window, length = None, None
    if _true(fields.get("compresseddata", "False")):
        window, length = 15, int(fields["compresseddatasize"])
    dtype = np.dtype(kind).newbyteorder(">" if big else "<")
    spaced = "elementspacing" in fields or "elementsize" in fields
    oriented = any(field in fields for field in ("transformmatrix", "rotation", "orientation"))
    return _Header((channels, *sizes) if channels != 1 else sizes, dtype, window, start, length, spaced, oriented)


def _true(text: str) -> bool:
    if text.lower() not in ("true", "t", "1", "false", "f", "0"):
        raise ValueError(f"{text[:40]!r} is neither True nor False")
    return text.lower() in ("true", "t", "1")


def _nrrd(path: Path, data: bytes) -> _Header:
    ends = [(at + len(mark), at) for mark in (b"\n\n", b"\r\n\r\n") if (at := data.find(mark, 0, _LONGEST_HEADER)) >= 0]
    if not ends:
        raise data_error(path, "is cut short: its header does not end", AGAIN)
    start, end = min(ends)
    fields: dict[str, str] = {}
    for line in data[:end].decode("latin-1").splitlines()[1:]:
        key, separator, value = line.partition(":")
        if not line.startswith("#") and separator and not value.startswith("="):
            fields[key.strip().lower()] = value.strip()
    if "data file" in fields or "datafile" in fields:
        raise data_error(path, "keeps its values in another file", _SAVE)
    if any(int(fields.get(key, "0")) for key in ("line skip", "lineskip", "byte skip", "byteskip")):
        raise data_error(path, "stores its values apart from its header", _SAVE)
    window = _nrrd_window(path, fields)
    sizes = _sizes(path, fields["sizes"], int(fields["dimension"]))
    name = " ".join(fields["type"].lower().split())
    kind = next((kind for kind, names in _NRRD_TYPES.items() if name in names.split("|")), None)
    if kind is None:
        raise data_error(path, f"holds values of type {name[:40]}", "save it with integer or real values")
    dtype = np.dtype(kind).newbyteorder(">" if fields.get("endian", "little").lower() == "big" else "<")
    spaced, oriented = "space directions" in fields or "spacings" in fields, "space" in fields
    return _Header(sizes, dtype, window, start, None, spaced, oriented, _nrrd_unit(fields))


def _nrrd_unit(fields: Mapping[str, str]) -> float:
    """Millimetres in the unit of space, where all axes have one that is known; else 1."""
    named = re.findall(r'"([^"]*)"', fields.get("space units", fields.get("units", "")))
    known = {length for name in named if (length := millimetres_in(name)) is not None}
    return known.pop() if len(known) == 1 else 1.0


def _nrrd_window(path: Path, fields: Mapping[str, str]) -> int | None:
    encoding = fields["encoding"].lower()
    if encoding not in ("raw", "gzip", "gz"):
        raise data_error(path, f"is packed as {encoding[:40]}, which is not read", _SAVE)
    return None if encoding == "raw" else 31


def _sizes(path: Path, text: str, dimensions: int) -> tuple[int, ...]:
    sizes = tuple(int(word) for word in text.split())
    if len(sizes) != dimensions or not sizes or min(sizes) < 1:
        raise data_error(path, f"declares the sizes {text[:80]!r} for {dimensions} axes", AGAIN)
    return sizes
