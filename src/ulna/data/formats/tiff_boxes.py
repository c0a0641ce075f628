"""Boxes of a TIFF: tiles or strips are decoded as they are asked for, one at a time; of a pyramid the full resolution."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ulna.data.formats.raw_boxes import RawFile
from ulna.data.formats.slabs import Float32, native
from ulna.data.formats.source import AGAIN, data_error
from ulna.data.formats.tiff import check_segment, check_type, checked, meta_of, steps_of
from ulna.data.formats.tiff_meaning import Axes, find_axes, meant
from ulna.data.formats.tiff_scale import TiffStored, read_scale
from ulna.data.turning import ORIENTATION, TURNS, checked_orientation, exchanged, upright
from ulna.data.volume import Volume
from ulna.errors import DataError

_LARGEST = 1 << 25  # bytes of a tile or strip that are worth decoding for every box that touches it


class TiffBoxes:
    """The values of a series, upright, as `read_tiff` gives them.

    Args:
        path: the file.
        series: of tifffile, whose file is open.
        held: closes it.
        axes: which stored axes are what.
        orientation: the tag.
        size: *S, as shown.
    """

    def __init__(
        self, path: Path, series: Any, held: ExitStack, axes: Axes, orientation: int, size: tuple[int, ...]
    ) -> None:
        self._path, self._series, self._held, self._axes = path, series, held, axes
        self._orientation, self._size = orientation, size
        self._raw: RawFile | None = None
        if series.dataoffset is not None:
            order = series.keyframe.parent.byteorder
            dtype = np.dtype(series.dtype).newbyteorder(order)
            self._raw = RawFile(path.open("rb"), series.dataoffset, dtype, tuple(reversed(series.shape)))
            held.callback(self._raw.close)

    def read(self, box: Sequence[slice]) -> NDArray[Any]:
        """(C, *box), as shown."""
        stored = self._as_stored(box)
        wanted = [slice(0, n) for n in self._series.shape]
        for axis, part in zip(self._axes.order[1:], stored, strict=True):
            assert axis is not None
            wanted[axis] = part
        series, page = self._series, self._series.keyframe
        try:
            values = self._raw.read(wanted[::-1]).T if self._raw is not None else self._decoded(wanted)
        except (OSError, MemoryError, DataError):
            raise
        except Exception as error:  # tifffile raises nearly every type on damaged files
            raise data_error(self._path, f"is damaged ({str(error) or type(error).__name__})", AGAIN) from None
        values, _, _ = meant(self._path, values, series.axes, page, False, [])
        shown = upright(self._axes.apply(values), self._orientation)
        made = Float32()(shown) if shown.dtype.kind == "f" else shown
        return np.ascontiguousarray(made, native(made.dtype))

    def close(self) -> None:
        """Close the file."""
        self._held.close()

    def _as_stored(self, box: Sequence[slice]) -> list[slice]:
        swap, rows, columns = TURNS[self._orientation]
        *depth, y, x = box
        height, width = self._size[-2:]
        y = slice(height - y.stop, height - y.start) if rows else y
        x = slice(width - x.stop, width - x.start) if columns else x
        return [*depth, x, y] if swap else [*depth, y, x]

    def _decoded(self, wanted: Sequence[slice]) -> NDArray[Any]:
        """A box of the series, page by page."""
        series = self._series
        page = series.keyframe
        lead = len(series.shape) - len(page.shape)
        strides = [math.prod(series.shape[a + 1 : lead]) for a in range(lead)]
        shape = [part.stop - part.start for part in wanted]
        made = np.empty(shape, page.dtype)
        for place in itertools.product(*(range(part.start, part.stop) for part in wanted[:lead])):
            number = sum(at * step for at, step in zip(place, strides, strict=True))
            here = tuple(at - part.start for at, part in zip(place, wanted, strict=False))
            made[here] = self._of_page(series.pages[number], wanted[lead:])
        return made

    def _of_page(self, page: Any, wanted: Sequence[slice]) -> NDArray[Any]:
        """A box of one page: (planes, H, W, samples) of what tifffile calls shaped, then in the shape of the page."""
        first = self._series.keyframe
        planes, _, height, width, samples = first.shaped
        names = dict(zip(first.axes, wanted, strict=True))
        y, x = names["Y"], names["X"]
        made = np.full((planes, y.stop - y.start, x.stop - x.start, samples), first.nodata, first.dtype)
        across = first.tilewidth if first.is_tiled else width
        down = first.tilelength if first.is_tiled else first.rowsperstrip
        columns, rows = -(-width // across), -(-height // down)
        for plane in range(planes):
            for row in range(y.start // down, -(-y.stop // down)):
                for column in range(x.start // across, -(-x.stop // across)):
                    values = self._segment(page, (plane * rows + row) * columns + column)
                    if values is None:
                        continue
                    corner = row * down, column * across
                    ends = min(corner[0] + values.shape[0], y.stop), min(corner[1] + values.shape[1], x.stop)
                    begins = max(corner[0], y.start), max(corner[1], x.start)
                    inner = tuple(slice(b - c, e - c) for b, e, c in zip(begins, ends, corner, strict=True))
                    there = (
                        slice(begins[0] - y.start, ends[0] - y.start),
                        slice(begins[1] - x.start, ends[1] - x.start),
                    )
                    made[(plane, *there)] = values[inner]
        shape = [part.stop - part.start for part in wanted]
        return made.reshape(
            [n if axis in "YX" else first.shape[a] for a, (axis, n) in enumerate(zip(first.axes, shape, strict=True))]
        )

    def _segment(self, page: Any, index: int) -> NDArray[Any] | None:
        """A tile or a strip, (rows, columns, samples); None where nothing is stored."""
        offset, count = page.dataoffsets[index], page.databytecounts[index]
        if not count:
            return None
        file = page.parent.filehandle
        file.seek(offset)
        data = file.read(count)
        check_segment(self._path, self._series.keyframe, data)
        values, _, _ = self._series.keyframe.decode(data, index)
        return None if values is None else np.asarray(values)[0]


def open_tiff(path: Path) -> tuple[Volume, TiffBoxes] | None:
    """The geometry of a TIFF, in a volume without memory, and its boxes; None where it is packed so that it is read whole.

    Raises:
        DataError: as `read_tiff`.
    """
    notes: list[str] = []
    with ExitStack() as stack:
        file, series = stack.enter_context(checked(path, notes, whole=False))
        page = series.keyframe
        if not _by_segments(path, series):
            return None
        sample = np.zeros((1,) * len(series.shape), series.dtype)
        told: list[str] = []
        values, axes, _ = meant(path, sample, series.axes, page, False, told)
        notes += told
        if len(axes) > len(series.axes):  # a palette, read as colour
            return None
        spacing, scale = read_scale(file, page)
        found = find_axes(path, series.shape, axes, page.extrasamples, notes)
        orientation = checked_orientation(page.tags.valueof(ORIENTATION, default=None), notes)
        check_type(path, values.dtype)
        channels = 1 if found.order[0] is None else series.shape[found.order[0]]
        channels = channels if found.chosen is None else len(found.chosen)
        stored = tuple(series.shape[axis] for axis in found.order[1:] if axis is not None)
        size = exchanged(stored, orientation)
        meta = meta_of(path, page, notes, orientation, channels, TiffStored(scale, found.run))
        hollow = np.broadcast_to(np.zeros((), native(values.dtype)), (channels, *size))
        volume = Volume(hollow, *steps_of(spacing, len(size), orientation), None, path, meta)
        boxes = TiffBoxes(path, series, stack.pop_all(), found, orientation, size)
    return volume, boxes


def _by_segments(path: Path, series: Any) -> bool:
    """Whether tifffile decodes the tiles or strips of a series one by one."""
    page = series.keyframe
    if series.dataoffset is not None:
        return True
    pages = [one for one in series.pages if one is not None]
    if len(pages) * math.prod(page.shape) != math.prod(series.shape) or page.shaped[1] != 1:
        return False
    if not {"Y", "X"} <= set(page.axes) or series.axes[len(series.shape) - len(page.shape) :] != page.axes:
        return False
    first = next((n for n, count in enumerate(page.databytecounts) if count), None)
    if first is None:
        return True
    if math.prod(page.chunks) * page.dtype.itemsize > _LARGEST:
        return False
    file = page.parent.filehandle
    file.seek(page.dataoffsets[first])
    data = file.read(page.databytecounts[first])
    check_segment(path, page, data)
    try:
        page.decode(data, first)
    except (
        Exception
    ):  # imagecodecs is absent, or the packing is odd: the whole reader knows more ways, and says what is wrong
        return False
    return True
