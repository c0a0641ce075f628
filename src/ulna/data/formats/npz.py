"""Arrays: `.npz` with `images` (N, *S[, C]), `masks` (N, *S) and `ids` (N).

Row i of a file is one case. A file is decompressed once and kept; the headers alone say how many cases it holds.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from ulna.data.formats.limits import bounded, check_need, check_pixels, check_promise, keep, room
from ulna.data.formats.npy import MOST_COLOURS, NUMBERS, array_header
from ulna.data.formats.slabs import as_float32, native
from ulna.data.formats.source import AGAIN, Source, case_name, composed, data_error, file_stat
from ulna.data.volume import Meta, Volume
from ulna.errors import counted

_WANTED = "save `images` (N, *S[, C]) and `masks` (N, *S) as numbers"
_FILES_KEPT = 4
_held: dict[tuple[Path, int, int, str], NDArray[Any]] = {}  # arrays that are kept within `--max-ram`
_MULTILABEL = "multilabel.npy"  # its presence says that the last axis of `masks` is the classes


class Contents(NamedTuple):
    """What the headers of an npz file say."""

    images: tuple[int, ...] | None
    masks: tuple[int, ...] | None
    ids: tuple[str, ...]
    nbytes: dict[str, int]  # of `images` and `masks`, unpacked


def npz_contents(path: Path) -> Contents:
    """Shapes and ids, without unpacking the pixels. Ids are `FILE_0007` where the file names none.

    Raises:
        DataError: if the file is missing, damaged, or its arrays do not fit each other.
    """
    stat = file_stat(path)
    return _contents(path, stat.st_mtime_ns, stat.st_size)


def read_npz(source: Source, key: str) -> Volume:
    """Row `source.row` of `images` or `masks`, (C, *S) in pixels.

    Raises:
        DataError: as `npz_contents`, and if the file has no such array or row.
    """
    stat = file_stat(source.path)
    at = (source.path, stat.st_mtime_ns, stat.st_size, key)
    if not bounded():
        _held.clear()
    array = _within_limit(*at) if bounded() else _array(*at)
    if array is None:
        raise data_error(source.path, f"holds no `{key}`", _WANTED)
    if source.row is None or not 0 <= source.row < len(array):
        raise data_error(
            source.path, f"has no row {source.row}, it holds {counted(len(array), 'case')}", "read the data set again"
        )
    row, large = np.ascontiguousarray(array[source.row]), None
    if bounded() and row.base is not None:
        row = row.copy()  # a view would keep all of the array, which no one counts
    if row.dtype.kind == "f":
        row, large = as_float32(row)
    meta = Meta(format="npz", suffix=".npz", too_large=large)
    return Volume(row.astype(native(row.dtype), copy=False), (1.0,) * (row.ndim - 1), "px", None, source.path, meta)


def write_npz(path: Path, **arrays: Any) -> None:
    """Write compressed arrays to exactly `path`."""
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)


@lru_cache(maxsize=256)
def _contents(path: Path, _mtime: int, size: int) -> Contents:
    try:
        with zipfile.ZipFile(path) as archive:
            headers = {key: _header(path, archive, key) for key in ("images", "masks", "ids")}
            shapes = {key: None if one is None else one[0] for key, one in headers.items()}
            ids = _read(path, archive, "ids") if shapes["ids"] is not None else None
            marked = _MULTILABEL in archive.namelist()
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise data_error(path, f"is cut short or no npz file ({error})", AGAIN) from None
    images, masks = shapes["images"], shapes["masks"]
    counts = {key: shape[0] if shape else 0 for key, shape in shapes.items() if shape is not None}
    if images is None and masks is None:
        raise data_error(path, "holds neither `images` nor `masks`", _WANTED)
    if shapes["ids"] is not None and len(shapes["ids"]) != 1:
        raise data_error(path, f"has `ids` of the shape {shapes['ids']}", "save one id per case, as one row")
    if len(set(counts.values())) > 1:
        raise data_error(path, f"has arrays of different length: {counts}", "give every image its mask and id")
    if set(counts.values()) == {0}:
        raise data_error(path, "holds no case", "take the file out")
    _layouts(path, images, masks, marked)
    count = next(iter(counts.values()))
    stem = case_name(path)
    names = [f"{stem}_{row:04d}" for row in range(count)] if ids is None else [_text(value) for value in ids.ravel()]
    return Contents(images, masks, tuple(names), {key: one[1] for key, one in headers.items() if one is not None})


def _text(value: Any) -> str:
    return composed(value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value))


def _header(path: Path, archive: zipfile.ZipFile, key: str) -> tuple[tuple[int, ...], int] | None:
    """Shape and bytes of one array; None where it is absent. A header that its bytes cannot fulfil is refused."""
    try:
        info = archive.getinfo(f"{key}.npy")
    except KeyError:
        return None
    with archive.open(info) as member:
        shape, _, dtype = array_header(path, member, f"`{key}`", "iufbUS" if key == "ids" else NUMBERS)
    promised = math.prod(shape) * dtype.itemsize
    check_pixels(path, shape[1:])  # of one case
    what = f"promises `{key}` of {shape} in {info.file_size} bytes"
    if promised > info.file_size:
        raise data_error(path, what, AGAIN)
    check_promise(path, what, info.file_size, info.compress_size, packed=True)
    return shape, promised


def _read(path: Path, archive: zipfile.ZipFile, key: str) -> NDArray[Any]:
    with archive.open(f"{key}.npy") as member:
        try:
            array = npy.read_array(member, allow_pickle=False)
        except ValueError as error:
            raise data_error(path, f"has an array `{key}` that cannot be read ({error})", AGAIN) from None
        while member.read(1 << 20):  # to the end, where zip keeps its checksum
            pass
    return np.asarray(array)


def _layouts(
    path: Path, images: tuple[int, ...] | None, masks: tuple[int, ...] | None, marked: bool
) -> tuple[bool, bool]:
    """Whether the last axis of images is colour, and whether the last axis of masks is the classes (multilabel)."""
    if images is None:
        assert masks is not None
        colour, classes, dims = False, marked, len(masks) - 1 - marked
    elif masks is None:
        colour, classes = len(images) >= 4 and images[-1] <= MOST_COLOURS, False
        dims = len(images) - 1 - colour
    elif len(images) == len(masks) and images[:-1] == masks[:-1] and images[-1] != masks[-1] and len(images) > 3:
        colour, classes, dims = True, True, len(images) - 2
    elif len(masks) == len(images) + 1 and masks[:-1] == images:
        colour, classes, dims = False, True, len(images) - 1
    else:
        colour, classes, dims = len(images) == len(masks) + 1, False, len(masks) - 1
        if images[1 : dims + 1] != masks[1:] or len(images) not in (len(masks), len(masks) + 1):
            raise data_error(path, f"has `images` {images} and `masks` {masks}, which do not fit", _WANTED)
    if dims not in (2, 3):
        raise data_error(path, f"has `images` {images} and `masks` {masks}, neither 2D nor 3D", _WANTED)
    return colour, classes


@lru_cache(maxsize=2 * _FILES_KEPT)
def _array(path: Path, mtime: int, size: int, key: str) -> NDArray[Any] | None:
    """`images` (N, C, *S) or `masks` (N, K, *S); None where the file has none."""
    contents = _contents(path, mtime, size)
    if getattr(contents, key) is None:
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            colour, classes = _layouts(path, contents.images, contents.masks, _MULTILABEL in archive.namelist())
            return _channels_second(_read(path, archive, key), colour if key == "images" else classes)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise data_error(path, f"is damaged ({error})", AGAIN) from None


def _within_limit(path: Path, mtime: int, size: int, key: str) -> NDArray[Any] | None:
    """`_array` within `--max-ram`: it is kept, beside others where all of them take half of the place at most.

    Raises:
        TooLargeError: if the memory does not hold it beside what is held.
    """
    at = (path, mtime, size, key)
    if (found := _held.get(at)) is not None:
        return found
    kept = sum(one.nbytes for one in _held.values())
    keep(0)  # of a file that is too large beside them, they are let go of
    try:
        need = _contents(path, mtime, size).nbytes.get(key, 0)
        if 2 * (kept + need) > room():
            _held.clear()
    finally:
        keep(sum(one.nbytes for one in _held.values()))
    check_need(path, need, f"`{key}` of all its cases")
    _array.cache_clear()
    found = _array.__wrapped__(path, mtime, size, key)
    if found is not None:
        _held[at] = found
        keep(sum(one.nbytes for one in _held.values()))
    return found


def _channels_second(array: NDArray[Any], last_is_channel: bool) -> NDArray[Any]:
    return np.moveaxis(array, -1, 1) if last_is_channel else array[:, None]


def write_masks(path: Path, masks: NDArray[Any], ids: Sequence[str], *, multilabel: bool = False) -> None:
    """Write predictions of a whole npz file: `masks` (N, *S) and `ids` (N); with `multilabel` (N, K, *S), stored
    as (N, *S, K) with a mark, because without images nothing else tells classes from an axis of space."""
    names = np.asarray(list(ids), dtype=np.str_)
    if multilabel:
        write_npz(path, masks=np.moveaxis(masks, 1, -1), ids=names, multilabel=np.True_)
    else:
        write_npz(path, masks=masks, ids=names)
