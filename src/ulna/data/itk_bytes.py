"""The values of .mha and .nrrd files, read from their bytes: every byte is counted, every checksum is compared.

ITK fills a file that was cut short with zeros and says nothing, so its readers are asked for the geometry only.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ulna.data.limits import check_promise
from ulna.data.source import AGAIN, fault
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


class Stored(NamedTuple):
    """What a file stores.

    Args:
        values: every value, in the file's order.
        sizes: of all axes, the fastest first; channels are one of them.
        spaced: the header states how far the voxels lie apart.
        oriented: the header states how the axes lie in the body; ITK assumes LPS where it does not.
    """

    values: NDArray[Any]
    sizes: tuple[int, ...]
    spaced: bool
    oriented: bool


class _Header(NamedTuple):
    sizes: tuple[int, ...]
    dtype: np.dtype[Any]
    window: int | None  # of zlib: 15 for its own frame, 31 for gzip's; None for raw values
    start: int
    length: int | None  # bytes of packed values, where the header says so
    spaced: bool
    oriented: bool


def stored(path: Path) -> Stored:
    """Read a .mha or .nrrd file.

    Raises:
        DataError: if the header cannot be read, or the bytes are not exactly what it promises.
    """
    data = path.read_bytes()
    try:
        header = _nrrd(path, data) if data.startswith(b"NRRD") else _meta_image(path, data)
    except DataError:
        raise
    except (ValueError, KeyError, OverflowError) as error:
        raise fault(path, f"has a header that cannot be read ({error})", AGAIN) from None
    expected = math.prod(header.sizes) * header.dtype.itemsize
    packed = data[header.start :]
    if header.length is not None and header.length != len(packed):
        how = "is cut short" if header.length > len(packed) else "is damaged"
        raise fault(path, f"{how}: the header promises {header.length} packed bytes, {len(packed)} follow", AGAIN)
    promise = f"is cut short: the header promises {expected} bytes of values, the file holds {len(packed)}"
    check_promise(path, promise, expected, len(packed), packed=header.window is not None)
    raw = packed if header.window is None else _inflated(path, packed, expected, header.window)
    if len(raw) != expected:
        how = "is cut short" if len(raw) < expected else "is damaged"
        raise fault(path, f"{how}: the header promises {expected} bytes of values, the file holds {len(raw)}", AGAIN)
    return Stored(np.frombuffer(raw, header.dtype), header.sizes, header.spaced, header.oriented)


def _inflated(path: Path, packed: bytes, expected: int, window: int) -> bytes:
    unpacker = zlib.decompressobj(window)
    try:
        raw = unpacker.decompress(packed, expected + 1)
        raw += unpacker.decompress(unpacker.unconsumed_tail, 1)  # on to the end, where the checksum stands
    except zlib.error as error:
        raise fault(path, f"is damaged ({error})", AGAIN) from None
    if len(raw) <= expected and not unpacker.eof:
        raise fault(path, "is cut short: the compressed data end too early", AGAIN)
    if unpacker.unused_data:
        raise fault(path, "is damaged: bytes follow the compressed values", AGAIN)
    return raw


def _meta_image(path: Path, data: bytes) -> _Header:
    fields: dict[str, str] = {}
    start = 0
    while "elementdatafile" not in fields:
        end = data.find(b"\n", start, start + _LONGEST_HEADER)
        if end < 0:
            raise fault(path, "is cut short or no MetaImage: its header does not end", AGAIN)
        key, separator, value = data[start:end].decode("latin-1").partition("=")
        if not separator:
            raise fault(path, "is not a MetaImage file", "give the file its right extension, or convert it")
        fields[key.strip().lower()] = value.strip()
        start = end + 1
    if fields["elementdatafile"].upper() != "LOCAL":
        raise fault(path, f"keeps its values in another file ({fields['elementdatafile'][:80]})", _SAVE)
    if not _true(fields.get("binarydata", "True")) or int(fields.get("headersize", "0")) != 0:
        raise fault(path, "stores its values as text, or apart from its header", _SAVE)
    channels = int(fields.get("elementnumberofchannels", "1"))
    sizes = _sizes(path, fields["dimsize"], int(fields["ndims"]))
    kind = _META_TYPES.get(fields["elementtype"].upper())
    if kind is None:
        raise fault(path, f"holds values of type {fields['elementtype'][:40]}", "save it with integer or real values")
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
        raise fault(path, "is cut short: its header does not end", AGAIN)
    start, end = min(ends)
    fields: dict[str, str] = {}
    for line in data[:end].decode("latin-1").splitlines()[1:]:
        key, separator, value = line.partition(":")
        if not line.startswith("#") and separator and not value.startswith("="):
            fields[key.strip().lower()] = value.strip()
    if "data file" in fields or "datafile" in fields:
        raise fault(path, "keeps its values in another file", _SAVE)
    if any(int(fields.get(key, "0")) for key in ("line skip", "lineskip", "byte skip", "byteskip")):
        raise fault(path, "stores its values apart from its header", _SAVE)
    window = _nrrd_window(path, fields)
    sizes = _sizes(path, fields["sizes"], int(fields["dimension"]))
    name = " ".join(fields["type"].lower().split())
    kind = next((kind for kind, names in _NRRD_TYPES.items() if name in names.split("|")), None)
    if kind is None:
        raise fault(path, f"holds values of type {name[:40]}", "save it with integer or real values")
    dtype = np.dtype(kind).newbyteorder(">" if fields.get("endian", "little").lower() == "big" else "<")
    spaced, oriented = "space directions" in fields or "spacings" in fields, "space" in fields
    return _Header(sizes, dtype, window, start, None, spaced, oriented)


def _nrrd_window(path: Path, fields: Mapping[str, str]) -> int | None:
    encoding = fields["encoding"].lower()
    if encoding not in ("raw", "gzip", "gz"):
        raise fault(path, f"is packed as {encoding[:40]}, which is not read", _SAVE)
    return None if encoding == "raw" else 31


def _sizes(path: Path, text: str, dimensions: int) -> tuple[int, ...]:
    sizes = tuple(int(word) for word in text.split())
    if len(sizes) != dimensions or not sizes or min(sizes) < 1:
        raise fault(path, f"declares the sizes {text[:80]!r} for {dimensions} axes", AGAIN)
    return sizes
