"""TIFF through tifffile: one page is 2D, several pages are 3D; spacing only where the file really states a unit.

Pages are shown upright, and white is the largest value, as viewers do; what was changed stands in the notes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tifffile

from ulna.data.formats.limits import MOST_PIXELS, check_memory, check_pixels
from ulna.data.formats.slabs import as_float32, native
from ulna.data.formats.source import AGAIN, data_error, file_stat, suffix_of
from ulna.data.formats.tiff_decoding import decoded
from ulna.data.formats.tiff_meaning import RGB, WHITE_IS_ZERO, channels_first, check_meaning, meant
from ulna.data.formats.tiff_scale import Spacing, TiffStored, read_scale
from ulna.data.formats.unpacking import exceeds
from ulna.data.turning import ORIENTATION, checked_orientation, exchanged, upright
from ulna.data.volume import Meta, Volume
from ulna.errors import DataError

logging.getLogger("tifffile").addHandler(logging.NullHandler())  # its faults are told as problems, not printed

_TAG_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_OFFSET = 273  # where the pixels of a page begin
_SHAPING = (256, 257, 258, 259, 262, 277, 317, 339)  # width, height, bits, packing, meaning and number of samples
_AS_SHOWN = {262: 1, ORIENTATION: 1}  # what the values mean and how the page is turned, with what is meant without
_PACKINGS = {8: "zlib", 32946: "zlib", 32773: "packbits", 34925: "lzma", 34926: "zstd", 50000: "zstd", 7: "jpeg"}
_SMALL = 64  # bytes, which unpack to a few MB at most


def read_tiff(path: Path, *, as_labels: bool = False) -> Volume:
    """(C, H, W) or (C, D, H, W); colour has C = 3. ImageJ and OME axes are respected, unnamed pages are depth.

    Raises:
        DataError: if the file is empty, cut short, damaged, too large or packed in a way that cannot be read.
    """
    notes: list[str] = []
    with checked(path, notes, as_labels=as_labels) as (file, series):
        page = series.keyframe
        array, axes, palette = meant(path, decoded(path, series), series.axes, page, as_labels, notes)
        spacing, scale = read_scale(file, page)
        array, run = channels_first(path, array, axes, page.extrasamples, notes)
        orientation = checked_orientation(page.tags.valueof(ORIENTATION, default=None), notes)
    check_type(path, array.dtype)
    array, large = upright(array, orientation), None
    if array.dtype.kind == "f":
        array, large = as_float32(array)
    stored = TiffStored(scale, run)
    meta = replace(meta_of(path, page, notes, orientation, len(array), stored), too_large=large, palette=palette)
    array = array if min(array.strides) > 0 else np.ascontiguousarray(array)  # torch takes no mirrored views
    return Volume(array, *steps_of(spacing, array.ndim - 1, orientation), None, path, meta)


@contextmanager
def checked(
    path: Path, notes: list[str], *, as_labels: bool = False, whole: bool = True
) -> Iterator[tuple[tifffile.TiffFile, Any]]:
    """The file and its first series, after all that can be judged before a pixel is decoded.

    Args:
        path: the file.
        notes: what a person should know is added.
        as_labels: whether label maps are read.
        whole: whether all of it will be in memory at once.

    Raises:
        DataError: as `read_tiff`, also for what is raised inside.
    """
    size = file_stat(path).st_size
    pages = _check_chain(path, size)
    try:
        with tifffile.TiffFile(path) as file:
            if not file.pages:
                raise data_error(path, "is cut short: it holds no page", AGAIN)
            series = file.series[0]
            _check_series(path, file.series, notes)
            _check_whole(path, series, size, whole=whole)
            _check_pages(path, series, pages)
            if whole:
                _check_segments(path, file, series)
            check_meaning(path, series.keyframe, as_labels)
            yield file, series
    except DataError:
        raise
    except MemoryError:
        raise
    except Exception as error:  # tifffile raises nearly every type on damaged files
        raise data_error(path, f"cannot be read as TIFF ({str(error) or type(error).__name__})", AGAIN) from None


def check_type(path: Path, dtype: np.dtype[Any]) -> None:
    """Refuse what are no numbers.

    Raises:
        DataError: if values of the type are neither integer nor real.
    """
    if dtype.kind not in "iuf":
        raise data_error(path, f"holds values of type {dtype}", "save it with integer or real values")


def meta_of(path: Path, page: Any, notes: Sequence[str], orientation: int, channels: int, stored: TiffStored) -> Meta:
    """What a file says beside its values, but for its palette and what float32 does not hold."""
    return Meta(
        format="tiff",
        suffix=suffix_of(path),
        notes=tuple(notes),
        orientation=orientation,
        white=(1 << int(page.bitspersample)) - 1 if WHITE_IS_ZERO in notes else None,
        colour=page.photometric == RGB and channels == 3,
        stored=stored,
    )


def steps_of(spacing: Spacing | None, dims: int, orientation: int) -> tuple[tuple[float, ...], Literal["mm", "px"]]:
    """The spacing of a picture as shown, and its unit."""
    if spacing is None or (dims == 3 and spacing[0] is None):
        return (1.0,) * dims, "px"
    return tuple(float(step) for step in exchanged(spacing[-dims:], orientation) if step), "mm"


def _check_series(path: Path, series: Sequence[Any], notes: list[str]) -> None:
    """Several pictures in one file: smaller ones are previews, others would be left out in silence."""
    first = series[0]
    size = dict(zip(first.axes, first.shape, strict=False))
    frames = [
        s for s in series[1:] if all(dict(zip(s.axes, s.shape, strict=False)).get(a) == size.get(a) for a in "YX")
    ]
    if frames:
        what = f"holds {len(frames) + 1} pictures of {size.get('Y')} x {size.get('X')} that are no stack"
        raise data_error(path, what, "save them as one stack, or one picture a file")
    if len(series) > 1:
        notes.append(f"holds {len(series)} pictures, the first is read")


def _check_chain(path: Path, size: int) -> list[dict[int, int]]:
    """Walk the directories of all pages: tifffile stops at a broken link and returns the pages before it.

    Returns:
        Of every page the tags that hold one number.
    """

    def number(count: int) -> int:
        data = file.read(count)
        if len(data) < count:
            raise data_error(path, f"is cut short: it holds {size} bytes, and a page is missing", AGAIN)
        return int.from_bytes(data, order)

    with path.open("rb") as file:
        order: Literal["little", "big"] = "big" if file.read(2) == b"MM" else "little"
        version = number(2)
        if version not in (42, 43):
            raise data_error(path, "is not a TIFF file", "give the file its right extension, or save it as TIFF")
        wide = version == 43
        file.seek(8 if wide else 4)
        word, counter = (8, 8) if wide else (4, 2)
        seen: set[int] = set()
        pages: list[dict[int, int]] = []
        while at := number(word):
            if at in seen:
                raise data_error(path, "is damaged: its pages run in a circle", AGAIN)
            seen.add(at)
            file.seek(at)
            pages.append({})
            for _ in range(number(counter)):
                tag, kind, count, raw = number(2), number(2), number(word), file.read(word)
                value = int.from_bytes(raw, order)
                if count == 1 and _TAG_BYTES.get(kind, 0) in (1, 2, 4):
                    pages[-1][tag] = int.from_bytes(raw[: _TAG_BYTES[kind]], order)
                long = count * _TAG_BYTES.get(kind, 0)
                if long > word and value + long > size:
                    raise data_error(path, f"is cut short: it needs {value + long} bytes and holds {size}", AGAIN)
    return pages


def _check_pages(path: Path, series: Any, pages: Sequence[dict[int, int]]) -> None:
    """A run of pages is read as one block, by the tags of its first page: the others must say the same."""
    if len(pages) < 2 or len(series.pages) != len(pages):
        return
    for number, page in enumerate(pages):
        if any(page.get(tag, usual) != pages[0].get(tag, usual) for tag, usual in _AS_SHOWN.items()):
            raise data_error(path, f"is damaged: page {number + 1} does not agree with the first", AGAIN)
    if series.dataoffset is None:
        return
    step = series.nbytes // len(pages)
    for number, page in enumerate(pages):
        begin = series.dataoffset + number * step
        if page.get(_OFFSET, begin) != begin or any(page.get(tag) != pages[0].get(tag) for tag in _SHAPING):
            raise data_error(path, f"is damaged: page {number + 1} does not agree with the first", AGAIN)


def _check_whole(path: Path, series: Any, size: int, *, whole: bool) -> None:
    check_pixels(path, series.shape, 4 * MOST_PIXELS if whole else None)
    if whole:
        check_memory(path, math.prod(series.shape) * native(series.dtype).itemsize)
    if series.dataoffset is not None:  # one run of bytes
        needed = series.dataoffset + series.nbytes
    else:
        pages = [page for page in series.pages if page is not None]
        ends = [[a + n for a, n in zip(page.dataoffsets, page.databytecounts, strict=False)] for page in pages]
        needed = max((end for page_ends in ends for end in page_ends), default=0)
        if len(pages) < len(series.pages):
            raise data_error(path, "is cut short: a page is missing", AGAIN)
    if needed > size:
        raise data_error(path, f"is cut short: it needs {needed} bytes and holds {size}", AGAIN)


def check_segment(path: Path, page: Any, data: bytes) -> None:
    """Refuse a strip or tile that unpacks to more than it declares: tifffile would unpack all of it.

    Args:
        path: the file.
        page: of tifffile, the first of its series, whose tags hold for all.
        data: of the strip or tile, packed.

    Raises:
        DataError: saying so.
    """
    declared = math.prod(page.chunks) * -(-int(page.bitspersample) // 8)
    if len(data) > _SMALL and exceeds(_PACKINGS.get(int(page.compression), ""), data, declared):
        raise data_error(path, "is damaged: a strip unpacks to more than its header declares", AGAIN)


def _check_segments(path: Path, file: Any, series: Any) -> None:
    """`check_segment` of all strips or tiles of a series."""
    if int(series.keyframe.compression) not in _PACKINGS:
        return
    for page in (page for page in series.pages if page is not None):
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False):
            file.filehandle.seek(offset)
            check_segment(path, series.keyframe, file.filehandle.read(count))
