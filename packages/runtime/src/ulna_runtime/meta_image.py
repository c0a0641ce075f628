"""MetaImage files (.mha): `Name = value` a line, then the values, raw or packed by zlib. Every byte is counted.

Coordinates of the file run to the left, to the back and up (LPS), those of a volume to the right, to the front and up (RAS).
"""

from __future__ import annotations

import math
import re
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ulna_runtime.errors import UsageError
from ulna_runtime.volume import MOST_VOXELS, Volume

TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
MILLIMETRES = {"m": 1e3, "cm": 10.0, "mm": 1.0, "um": 1e-3, "nm": 1e-6}
LONGEST_HEADER = 1 << 20
MOST_PACKED = 1032  # bytes that zlib makes of one
TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
AGAIN = "copy it again, or export it again"


class Geometry(NamedTuple):
    """Where the voxels lie, in mm, LPS.

    Args:
        size: voxels along the axes of space.
        origin: of the first voxel.
        spacing: along every axis.
        direction: (S, S), a column an axis.
    """

    size: tuple[int, ...]
    origin: NDArray[np.float64]
    spacing: NDArray[np.float64]
    direction: NDArray[np.float64]


def read_meta_image(path: Path, dims: int) -> Volume:
    """(C, *S), the axes in the file's order; a fourth axis, or the components of a voxel, are the channels.

    Raises:
        UsageError: if it is cut short, damaged, or keeps its values in another file.
        ValueError, KeyError: if its header cannot be right.
    """
    data = path.read_bytes()
    fields, start = _fields(path, data)
    count = int(fields["NDims"])
    sizes = tuple(map(int, fields["DimSize"].split()))
    channels = int(fields.get("ElementNumberOfChannels", "1"))
    if len(sizes) != count or not 2 <= count <= 4 or min(sizes) < 1 or channels < 1 or (count == 4 and channels > 1):
        raise UsageError(f"{path}: has the sizes {sizes} with {channels} components; save a 2D or 3D image")
    if math.prod(sizes) * channels > MOST_VOXELS:
        raise UsageError(f"{path}: its header promises {sizes} voxels, more than are read; cut the image")
    big = _true(fields.get("BinaryDataByteOrderMSB", fields.get("ElementByteOrderMSB", "False")))
    dtype = np.dtype(TYPES[fields["ElementType"]]).newbyteorder(">" if big else "<")
    values = _values(path, memoryview(data)[start:], fields, math.prod(sizes) * channels * dtype.itemsize)
    components = (channels,) if channels > 1 else ()
    array = np.frombuffer(values, dtype).reshape((*components, *sizes), order="F")
    array = array if channels > 1 else np.moveaxis(array, 3, 0) if count == 4 else array[None]
    kept = array.dtype.newbyteorder("=")
    array = np.ascontiguousarray(array, np.float32 if kept.kind == "f" else kept)
    geometry = _geometry(path, fields, sizes[:3], count)
    single = [axis for axis, n in enumerate(array.shape[1:]) if n == 1]
    flat = single[-1] if array.ndim == 4 and single and dims != 3 else None
    if flat is not None:
        array = np.squeeze(array, flat + 1)
    if "ElementSpacing" not in fields and "ElementSize" not in fields:
        return Volume(array, (1.0,) * (array.ndim - 1), "px", None, path, ".mha", geometry)
    affine, space = np.eye(4), len(geometry.size)
    affine[:space, :space] = geometry.direction * geometry.spacing
    affine[:space, 3] = geometry.origin
    order = [axis for axis in range(space) if axis != flat]
    affine = TO_RAS @ (affine if flat is None else affine[:, [*order, flat, 3]])
    spacing = tuple(float(f"{geometry.spacing[axis]:.7g}") for axis in order)
    return Volume(array, spacing, "mm", affine, path, ".mha", geometry)


def _fields(path: Path, data: bytes) -> tuple[dict[str, str], int]:
    """Every field up to the one that ends the header, and where the values begin."""
    fields: dict[str, str] = {}
    start = 0
    while "ElementDataFile" not in fields:
        end = data.find(b"\n", start, LONGEST_HEADER)
        name, *value = re.split("[=:]", data[start : max(end, start)].decode("latin-1"), maxsplit=1)
        if end < 0 or not value:
            raise UsageError(f"{path}: is cut short or no MetaImage, its header does not end; {AGAIN}")
        name, text = name.strip(), value[0].lstrip("=: \t").rstrip()
        if fields.get(name, text) != text:
            raise ValueError(f"{name[:40]} is stated twice")
        fields[name] = text
        start = end + 1
    apart = fields["ElementDataFile"].lower() != "local" or fields.get("HeaderSize", "0") != "0"
    if apart or not _true(fields.get("BinaryData", "True")):
        raise UsageError(f"{path}: keeps its values in another file or as text; save it again as one binary .mha")
    return fields, start


def _values(path: Path, held: memoryview, fields: dict[str, str], expected: int) -> bytes | memoryview:
    """Exactly the bytes that the header promises."""
    if not _true(fields.get("CompressedData", "False")):
        if len(held) != expected:
            raise UsageError(f"{path}: its header promises {expected} bytes of values, {len(held)} follow; {AGAIN}")
        return held
    if int(fields.get("CompressedDataSize", str(len(held)))) != len(held) or expected > MOST_PACKED * len(held) + 64:
        raise UsageError(f"{path}: is cut short or damaged, {len(held)} packed bytes follow its header; {AGAIN}")
    unpacker = zlib.decompressobj()
    try:
        values = unpacker.decompress(held, expected + 1)
    except zlib.error as error:
        raise UsageError(f"{path}: is damaged ({error}); {AGAIN}") from None
    if len(values) != expected or not unpacker.eof or unpacker.unused_data:
        raise UsageError(f"{path}: is cut short or damaged, its header promises {expected} bytes of values; {AGAIN}")
    return values


def _geometry(path: Path, fields: dict[str, str], size: tuple[int, ...], count: int) -> Geometry:
    def numbers(names: tuple[str, ...], otherwise: NDArray[np.float64]) -> NDArray[np.float64]:
        text = next((fields[name] for name in names if name in fields), None)
        found = otherwise if text is None else np.array(text.split(), np.float64)
        if found.shape != otherwise.shape or not np.isfinite(found).all():
            raise ValueError(f"{names[0]} does not hold {otherwise.size} numbers")
        return found

    scale, space = MILLIMETRES.get(fields.get("DistanceUnits", "mm").lower(), 1.0), len(size)
    origin = numbers(("Offset", "Position", "Origin", "ImagePosition"), np.zeros(count))[:space] * scale
    spacing = numbers(("ElementSpacing", "ElementSize"), np.ones(count))[:space] * scale
    matrix = numbers(("TransformMatrix", "Rotation", "Orientation"), np.eye(count).ravel())
    whole = matrix.reshape(count, count).T  # a row of the file is the direction of an axis
    direction = whole[:space, :space]
    if min(spacing) <= 0 or abs(np.linalg.det(direction)) < 1e-6 or whole[space:, :space].any():
        raise UsageError(f"{path}: has an orientation that cannot be; write the geometry anew")
    return Geometry(size, origin, spacing, direction)


def _true(text: str) -> bool:
    if text.lower() not in ("true", "t", "1", "false", "f", "0"):
        raise ValueError(f"{text[:40]!r} is neither True nor False")
    return text.lower() in ("true", "t", "1")


def write_meta_image(path: Path, mask: NDArray[Any], like: Volume) -> None:
    """(*S), or (K, *S) as components, with the geometry of the image, packed."""
    geometry: Any = like.stored
    channels = len(mask) if mask.ndim > len(like.size) else 1
    values = mask.reshape(*([channels] if channels > 1 else []), *geometry.size)
    values = values.astype(values.dtype.newbyteorder("<"), copy=False)
    packer = zlib.compressobj(2)
    parts = [packer.compress(np.ascontiguousarray(part.T).data) for part in np.moveaxis(values, -1, 0)]
    parts.append(packer.flush())
    names = {kind: name for name, kind in reversed(TYPES.items())}
    lines = [
        "ObjectType = Image",
        f"NDims = {len(geometry.size)}",
        "BinaryData = True",
        "BinaryDataByteOrderMSB = False",
        "CompressedData = True",
        f"CompressedDataSize = {sum(map(len, parts))}",
        f"TransformMatrix = {_digits(geometry.direction.T)}",
        f"Offset = {_digits(geometry.origin)}",
        f"CenterOfRotation = {_digits(np.zeros(len(geometry.size)))}",
        f"ElementSpacing = {_digits(geometry.spacing)}",
        f"DimSize = {' '.join(map(str, geometry.size))}",
        *([f"ElementNumberOfChannels = {channels}"] if channels > 1 else []),
        f"ElementType = {names[values.dtype.str[1:]]}",
        "ElementDataFile = LOCAL\n",
    ]
    with path.open("wb") as file:
        file.writelines(["\n".join(lines).encode("ascii"), *parts])


def _digits(values: NDArray[np.float64]) -> str:
    """Numbers in text, so that the same numbers are read from it."""
    return " ".join(f"{value:.17g}" for value in values.ravel())
