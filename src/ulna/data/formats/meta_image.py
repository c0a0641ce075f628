"""The header of a MetaImage file (.mha), `Name = value` a line; what ITK reads is what counts.

The format is that of MetaIO. Fields of one meaning must agree; of the spacing and the size of an element, the spacing
counts, as for ITK.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ulna.data.formats.itk_header import LONGEST_HEADER, NO_TYPE, SAVE, Geometry, Header, numbers, sizes_of, whole
from ulna.data.formats.source import AGAIN, data_error
from ulna.data.formats.units import millimetres_in

META_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
_MATRICES = ("TransformMatrix", "Rotation", "Orientation")
_ORIGINS = ("Offset", "Position", "Origin", "ImagePosition")
_LISTS = (*_ORIGINS, "ElementSpacing", "ElementSize", "CenterOfRotation")
_ORDERS = ("BinaryDataByteOrderMSB", "ElementByteOrderMSB")
_FIELDS = (
    "NDims", "DimSize", *_LISTS, *_MATRICES, *_ORDERS, "BinaryData", "CompressedData", "CompressedDataSize", "HeaderSize",
    "ElementNumberOfChannels", "ElementType", "ElementDataFile", "FileFormatVersion",
)  # fmt: skip
_SPELT = {name.lower(): name for name in _FIELDS}


def read_meta_image(path: Path, data: bytes) -> Header:
    """The header with which the bytes of a file begin.

    Raises:
        DataError: if it does not end, or declares what is not read.
        ValueError, KeyError: if it is not as the format says.
    """
    fields, start = _fields(path, data)
    if fields["ElementDataFile"] not in ("LOCAL", "Local", "local"):
        raise data_error(path, f"keeps its values in another file ({fields['ElementDataFile'][:80]})", SAVE)
    if not _true(fields.get("BinaryData", "True")) or whole("HeaderSize", fields.get("HeaderSize", "0")) != 0:
        raise data_error(path, "stores its values as text, or apart from its header", SAVE)
    dims = whole("NDims", fields["NDims"])
    sizes = sizes_of(path, fields["DimSize"], dims)
    channels = whole("ElementNumberOfChannels", fields.get("ElementNumberOfChannels", "1"))
    if channels < 1:
        raise ValueError(f"ElementNumberOfChannels is {channels}")
    kind = META_TYPES.get(fields["ElementType"])
    if kind is None:
        raise data_error(path, f"holds values of type {fields['ElementType'][:40]}", NO_TYPE)
    dtype = np.dtype(kind).newbyteorder(">" if _big(fields) else "<")
    window, length = None, None
    if _true(fields.get("CompressedData", "False")):
        window, length = 15, whole("CompressedDataSize", fields["CompressedDataSize"])
    spaced = "ElementSpacing" in fields or "ElementSize" in fields
    oriented = any(name in fields for name in _MATRICES)
    sizes, axis = ((channels, *sizes), 0) if channels > 1 else (sizes, None)
    unit = millimetres_in(fields.get("DistanceUnits")) or 1.0  # which ITK does not ask for
    return Header(sizes, axis, dtype, window, start, length, _geometry(fields, dims), spaced, oriented, unit)


def _fields(path: Path, data: bytes) -> tuple[dict[str, str], int]:
    """Every field up to the one that ends the header, and where the values begin."""
    fields: dict[str, str] = {}
    start = 0
    while "ElementDataFile" not in fields:
        end = data.find(b"\n", start, start + LONGEST_HEADER)
        if end < 0:
            raise data_error(path, "is cut short or no MetaImage: its header does not end", AGAIN)
        name, *value = re.split("[=:]", data[start:end].decode("latin-1"), maxsplit=1)
        if not value:
            raise data_error(path, "is not a MetaImage file", "give the file its right extension, or convert it")
        name, text = name.strip(), value[0].lstrip("=: \t").rstrip()
        if name != _SPELT.get(name.lower(), name):
            raise ValueError(f"{name} is spelt {_SPELT[name.lower()]}")
        if name in _FIELDS and fields.get(name, text) != text:
            raise ValueError(f"{name} is stated twice")
        if name in (*_LISTS, *_MATRICES, "DimSize") and "NDims" not in fields:
            raise ValueError(f"{name} stands before NDims")
        fields[name] = text
        start = end + 1
    return fields, start


def _big(fields: Mapping[str, str]) -> bool:
    """Whether the byte of most weight comes first."""
    orders = {_true(fields[name]) for name in _ORDERS if name in fields}
    if len(orders) > 1:
        raise ValueError(f"{' and '.join(_ORDERS)} differ")
    return True in orders


def _geometry(fields: Mapping[str, str], dims: int) -> Geometry:
    if fields.get("FileFormatVersion", "0") != "0" and any(
        name in fields for name in ("Position", "Origin", *_MATRICES[1:])
    ):
        raise ValueError("Position, Origin, Rotation and Orientation are no fields of its FileFormatVersion")
    stated = {name: numbers(name, fields[name].split(), dims) for name in _LISTS if name in fields}
    stated |= {name: numbers(name, fields[name].split(), dims * dims) for name in _MATRICES if name in fields}
    spacing = stated.get("ElementSpacing", stated.get("ElementSize", np.ones(dims)))
    origin = _one(stated, _ORIGINS, np.zeros(dims))
    matrix = _one(stated, _MATRICES, np.eye(dims).ravel())
    return Geometry(origin, spacing, matrix.reshape(dims, dims).T)  # a row of the file is the direction of an axis


def _one(
    stated: Mapping[str, NDArray[np.float64]], names: Iterable[str], default: NDArray[np.float64]
) -> NDArray[np.float64]:
    """What the fields of several names say, which have one meaning."""
    found = {name: stated[name] for name in names if name in stated}
    value = next(iter(found.values()), default)
    if not all(np.array_equal(one, value) for one in found.values()):
        raise ValueError(f"{' and '.join(found)} differ")
    return value


def _true(text: str) -> bool:
    if text.lower() not in ("true", "t", "1", "false", "f", "0"):
        raise ValueError(f"{text[:40]!r} is neither True nor False")
    return text.lower() in ("true", "t", "1")
