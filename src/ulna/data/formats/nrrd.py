"""The header of a NRRD file (.nrrd), `field: value` a line; what ITK reads is what counts.

The format is Teem's; where its definition leaves a choice, that of ITK 5.4 is taken.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ulna.data.formats.itk_header import (
    LONGEST_HEADER,
    MOST_AXES,
    NO_TYPE,
    SAVE,
    Geometry,
    Header,
    numbers,
    sizes_of,
    whole,
)
from ulna.data.formats.source import AGAIN, data_error
from ulna.data.formats.units import millimetres_in

_MAGIC = ("NRRD00.01", "NRRD0001", "NRRD0002", "NRRD0003", "NRRD0004", "NRRD0005")
NRRD_TYPES = {
    "i1": "signed char|int8|int8_t",
    "u1": "unsigned char|uchar|uint8|uint8_t",
    "i2": "short|short int|signed short|signed short int|int16|int16_t",
    "u2": "unsigned short|ushort|unsigned short int|uint16|uint16_t",
    "i4": "int|signed int|int32|int32_t",
    "u4": "unsigned int|uint|uint32|uint32_t",
    "i8": "long long int|longlong|long long|signed long long|signed long long int|int64|int64_t",
    "u8": "unsigned long long int|ulonglong|unsigned long long|uint64|uint64_t",
    "f4": "float",
    "f8": "double",
}  # as ITK writes it, and what else it reads
_MEASURED = ("spacings", "thicknesses", "axismins", "axismaxs")
_OF_AXES = (*_MEASURED, "sizes", "centerings", "kinds", "labels", "units")
_IN_SPACE = ("spacedirections", "spaceorigin", "spaceunits", "measurementframe")
_FIELDS = (
    *_OF_AXES, *_IN_SPACE, "dimension", "space", "spacedimension", "type", "encoding", "endian", "lineskip", "byteskip",
    "datafile", "content", "number", "blocksize", "min", "max", "oldmin", "oldmax", "sampleunits",
)  # fmt: skip
_QUOTED = r'"((?:\\.|[^"\\])*)"'
_DOMAIN = ("domain", "space", "time", "???", "none")
_CHANNELS = {  # kinds of an axis that is no axis of space, and its size (0: any)
    0: "list|point|vector|contravariant-vector|covariant-vector|normal",
    1: "stub|scalar",
    2: "complex|2-vector",
    3: "3-color|rgb-color|rgbcolor|rgb|hsv-color|hsvcolor|hsv|xyz-color|3-vector|3-normal|2d-symmetric-matrix|"
    "2d-sym-matrix|2d-symmetric-tensor|2d-sym-tensor",
    4: "4-color|rgba-color|rgbacolor|rgba|4-vector|quaternion|2d-matrix|2d-tensor|2d-masked-symmetric-matrix|"
    "2d-masked-sym-matrix|2d-masked-symmetric-tensor|2d-masked-sym-tensor",
    5: "2d-masked-matrix|2d-masked-tensor",
    9: "3d-matrix|3d-tensor",
}
_Space = tuple[tuple[float, ...], bool]  # signs that lead to LPS, and whether its axes are those of the body
_SPACES: dict[str, _Space] = {
    "lps|leftposteriorsuperior": ((1, 1, 1), True),
    "ras|rightanteriorsuperior": ((-1, -1, 1), True),
    "las|leftanteriorsuperior": ((1, -1, 1), True),
    "lpst|leftposteriorsuperiortime": ((1, 1, 1, 1), True),
    "scannerxyz|3drighthanded|3dlefthanded": ((1, 1, 1), False),
    "scannerxyzt|scannerxyztime|3drighthandedtime|3dlefthandedtime": ((1, 1, 1, 1), False),
}  # ITK takes RAST and LAST for LPST, against the definition: they are refused


def read_nrrd(path: Path, data: bytes) -> Header:
    """The header with which the bytes of a file begin.

    Raises:
        DataError: if it does not end, or declares what is not read.
        ValueError, KeyError: if it is not as the format says.
    """
    ends = [(at + len(mark), at) for mark in (b"\n\n", b"\r\n\r\n") if (at := data.find(mark, 0, LONGEST_HEADER)) >= 0]
    if not ends:
        raise data_error(path, "is cut short: its header does not end", AGAIN)
    start, end = min(ends)
    fields = _fields(data[:end].decode("latin-1"))
    if "datafile" in fields:
        raise data_error(path, "keeps its values in another file", SAVE)
    if any(whole(name, fields.get(name, "0")) for name in ("lineskip", "byteskip")):
        raise data_error(path, "stores its values apart from its header", SAVE)
    encoding = fields["encoding"].lower()
    if encoding not in ("raw", "gzip", "gz"):
        raise data_error(path, f"is packed as {encoding[:40]}, which is not read", SAVE)
    dimension = whole("dimension", fields["dimension"])
    sizes = sizes_of(path, fields["sizes"], dimension)
    axes = {name: _items(name, fields[name], dimension) for name in _OF_AXES if name in fields}
    channels = _channel_axis(axes.get("kinds", ["???"] * dimension), sizes)
    others = [axis for axis in range(dimension) if axis != channels]
    signs, oriented = _space(path, fields) or ((), False)
    if signs and len(signs) != len(others):
        what = f"has {len(others)} axes for a space of {len(signs)} dimensions"
        raise data_error(path, what, "give the axis of channels a kind that says so, such as vector or list")
    geometry, spaced = _in_space(fields, axes, others, np.array(signs)) if signs else _apart(axes, others)
    window = None if encoding == "raw" else 31
    unit = _unit(fields)
    return Header(sizes, channels, _dtype(path, fields), window, start, None, geometry, spaced, oriented, unit)


def _fields(head: str) -> dict[str, str]:
    magic, *lines = (line.rstrip("\r") for line in head.split("\n"))
    if magic not in _MAGIC:
        raise ValueError(f"{magic[:20]!r} is no version of NRRD that is known")
    fields: dict[str, str] = {}
    for line in lines:
        name, separator, value = line.partition(": ")
        field = name.lower().replace(" ", "").replace("centers", "centerings")
        if line.startswith("#") or (field not in _FIELDS and ":=" in line):  # a comment, or a key with a value
            continue
        if not separator or field not in _FIELDS:
            raise ValueError(f"{line[:60]!r} is no field")
        if field in fields:
            raise ValueError(f"{name} is stated twice")
        if field in _OF_AXES and "dimension" not in fields:
            raise ValueError(f"{name} stands before dimension")
        if field in _IN_SPACE and "space" not in fields and "spacedimension" not in fields:
            raise ValueError(f"{name} stands before space")
        fields[field] = value.strip()
    return fields


def _items(name: str, text: str, count: int) -> list[str]:
    """What a field says of each of `count` axes; texts stand in quotes."""
    quoted = name in ("labels", "units", "spaceunits")
    found = re.findall(_QUOTED, text) if quoted else text.split()
    if len(found) != count or (quoted and re.sub(_QUOTED, "", text).strip()):
        raise ValueError(f"{name} is {text[:80]!r}, for {count} axes")
    values = numbers(name, found, count, unknown=True) if name in _MEASURED else np.zeros(1)
    if name == "thicknesses" and (values < 0).any():
        raise ValueError(f"{name} is {text[:80]!r}")
    if name == "centerings" and not {word.lower() for word in found} <= {"cell", "node", "none", "???"}:
        raise ValueError(f"{name} is {text[:80]!r}, neither cell nor node")
    return found


def _channel_axis(kinds: Sequence[str], sizes: Sequence[int]) -> int | None:
    """The axis that the kinds say is no axis of space; None for none."""
    found = [axis for axis, kind in enumerate(kinds) if kind.lower() not in _DOMAIN]
    for axis in found:
        size = next((size for size, names in _CHANNELS.items() if kinds[axis].lower() in names.split("|")), None)
        if size is None:
            raise ValueError(f"kinds has {kinds[axis][:40]!r}, which is not read")
        if size not in (0, sizes[axis]):
            raise ValueError(f"an axis of {sizes[axis]} values has the kind {kinds[axis]}, of {size}")
    if len(found) > 1:
        raise ValueError(f"kinds names {len(found)} axes of channels")
    return found[0] if found else None


def _space(path: Path, fields: Mapping[str, str]) -> _Space | None:
    if "space" in fields and "spacedimension" in fields:
        raise ValueError("space and space dimension are both stated")
    if "spacedimension" in fields:
        count = whole("space dimension", fields["spacedimension"])
        if not 1 <= count <= MOST_AXES:
            raise ValueError(f"space dimension is {count}")
        return (1,) * count, False
    if "space" not in fields:
        return None
    name = re.sub("[- ]", "", fields["space"].lower())
    found = next((space for names, space in _SPACES.items() if name in names.split("|")), None)
    if found is None:
        what = f"states positions in {fields['space'][:40]!r}, which is not read"
        raise data_error(path, what, "save it in left-posterior-superior")
    return found


def _apart(axes: Mapping[str, Sequence[str]], others: Sequence[int]) -> tuple[Geometry, bool]:
    """The geometry of axes that lie in no space, and whether it is stated how far their voxels lie apart."""
    count = len(others)
    spacing, low = (_of(name, axes, others) for name in ("spacings", "axismins"))
    if np.isnan(spacing).all():
        return Geometry(np.zeros(count), np.ones(count), np.eye(count)), False
    if np.isnan(spacing).any():
        raise ValueError("spacings leaves out an axis")
    centerings = axes.get("centerings", [""] * len(axes["sizes"]))
    half = np.array(
        [0.0 if centerings[axis].lower() == "node" else 0.5 for axis in others]
    )  # a cell begins at its edge
    origin = np.zeros(count) if np.isnan(low).all() else low + half * spacing
    return Geometry(origin, spacing, np.eye(count)), True


def _in_space(
    fields: Mapping[str, str],
    axes: Mapping[str, Sequence[str]],
    others: Sequence[int],
    signs: NDArray[np.float64],
) -> tuple[Geometry, bool]:
    """The geometry of axes in a space, and whether it is stated how far their voxels lie apart."""
    count, total = len(others), len(axes["sizes"])
    if "spaceunits" in fields:
        _items("spaceunits", fields["spaceunits"], count)
    if "measurementframe" in fields:
        _vectors("measurement frame", fields["measurementframe"], count, count)
    origin = _vectors("space origin", fields.get("spaceorigin", "none"), 1, count)[0]
    origin = np.zeros(count) if np.isnan(origin).all() else origin * signs
    directions = _vectors("space directions", fields.get("spacedirections", "none " * total), total, count)[others]
    spaced = not np.isnan(directions).all()
    measured = [name for name in ("spacings", "axismins", "axismaxs") if not np.isnan(_of(name, axes, others)).all()]
    measured += ["units" for axis in others if axes.get("units", [""] * total)[axis]]
    if "spacings" in measured or (spaced and measured):
        raise ValueError(f"{measured[0]} and space are both stated")
    if not spaced:
        return Geometry(origin, np.ones(count), np.eye(count)), False
    if np.isnan(directions).any():
        raise ValueError("space directions leaves out an axis of space")
    columns = directions.T * signs[:, None]
    with np.errstate(all="ignore"):
        spacing = np.sqrt((columns**2).sum(0))
        return Geometry(origin, spacing, columns / spacing), True


def _of(name: str, axes: Mapping[str, Sequence[str]], others: Sequence[int]) -> NDArray[np.float64]:
    """The numbers that a field gives for some axes; NaN for what it does not say."""
    words = axes.get(name)
    return np.full(len(others), np.nan) if words is None else numbers(name, words, len(words), unknown=True)[others]


def _vectors(name: str, text: str, count: int, dims: int) -> NDArray[np.float64]:
    """Vectors such as `(1,0,0)`, (count, dims); NaN for `none`."""
    pattern = r"\(([^()]*)\)|\bnone\b"
    found = [
        numbers(name, one[1].split(","), dims, unknown=True) if one[1] is not None else np.full(dims, np.nan)
        for one in re.finditer(pattern, text)
    ]
    if len(found) != count or re.sub(pattern, "", text).strip():
        raise ValueError(f"{name} is {text[:80]!r}, for {count} vectors")
    return np.stack(found)


def _dtype(path: Path, fields: Mapping[str, str]) -> np.dtype[Any]:
    name = " ".join(fields["type"].lower().split())
    kind = next((kind for kind, names in NRRD_TYPES.items() if name in names.split("|")), None)
    if kind is None:
        raise data_error(path, f"holds values of type {name[:40]}", NO_TYPE)
    dtype = np.dtype(kind)
    order = fields["endian"].lower() if dtype.itemsize > 1 else fields.get("endian", "little").lower()
    if order not in ("little", "big"):
        raise ValueError(f"endian is {order[:40]!r}, neither little nor big")
    return dtype.newbyteorder(">" if order == "big" else "<")


def _unit(fields: Mapping[str, str]) -> float:
    """Millimetres in the unit of space, where all axes have one that is known; else 1."""
    named = re.findall(r'"([^"]*)"', fields.get("spaceunits", fields.get("units", "")))
    known = {length for name in named if (length := millimetres_in(name)) is not None}
    return known.pop() if len(known) == 1 else 1.0
