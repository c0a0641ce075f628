"""DICOM SEG (binary, fractional, label map) as masks on the slices of a series."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ulna.data.formats.dicom.align import Plane, Series3D, placed
from ulna.data.formats.dicom.header import Slice, read_dataset
from ulna.data.formats.dicom.library import pydicom
from ulna.data.formats.dicom.naming import Named, code_names
from ulna.data.formats.dicom.stack import Stack
from ulna.data.formats.source import AGAIN, data_error
from ulna.errors import DataError

_OTHER_GRID = "resample it to the grid of its series, or take it out"
_LABELMAP = "1.2.840.10008.5.1.4.1.1.66.7"


class Part(NamedTuple):
    """Pixels of one segment on one frame of the series.

    Args:
        named: the segment.
        frame: its number in the stack.
        mask: (rows, columns) of that frame.
    """

    named: Named
    frame: int
    mask: NDArray[np.bool_]


def segments_of(dataset: Any) -> list[Named]:
    """The segments that a SEG describes, in the order of their numbers; number 0 of a label map is the background."""
    found = []
    for number, item in enumerate(dataset.get("SegmentSequence") or (), start=1):
        number = int(item.get("SegmentNumber", number) or 0)
        codes = code_names([item.get("SegmentedPropertyTypeCodeSequence")])
        label = str(item.get("SegmentLabel") or "").strip() or (codes[0] if codes else f"segment {number}")
        beside = tuple(str(item.get(key)) for key in ("TrackingID",) if item.get(key))
        if number > 0:
            found.append(Named(number, label, (*codes, *beside)))
    return sorted(found)


def read_seg(path: Path, stack: Stack, wanted: Callable[[Named], bool], notes: dict[str, None]) -> Iterator[Part]:
    """The wanted segments, frame by frame.

    Args:
        notes: what was taken for granted is added.

    Raises:
        DataError: if it is damaged, or does not lie on the pixels of the series.
    """
    dataset = read_dataset(path, pixels=True)
    segments = {named.number: named for named in segments_of(dataset)}
    rows, columns = int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)
    shape = (stack.frames[0].header.rows, stack.frames[0].header.columns)
    places = slices_of(dataset, path)
    series = Series3D(stack) if stack.affine is not None else None
    kind = str(dataset.get("SegmentationType") or "BINARY").upper()
    labelmap = kind == "LABELMAP" or str(dataset.get("SOPClassUID")) == _LABELMAP
    threshold = 1.0
    if kind == "FRACTIONAL":
        threshold = max(int(dataset.get("MaximumFractionalValue") or 255), 1) / 2
        notes["a fractional segmentation: what is half or more counts as inside"] = None
    outside = 0
    for number, (frame, (of, at)) in enumerate(
        zip(_frames(dataset, rows, columns, len(places), path), places, strict=True)
    ):
        if labelmap:
            held = [segments[int(value)] for value in np.unique(frame) if int(value) in segments and value]
        elif of in segments:
            held = [segments[of]]
        else:
            raise data_error(path, f"has a frame ({number + 1}) of segment {of}, which it does not describe", AGAIN)
        held = [named for named in held if wanted(named)]
        if not held:
            continue
        plane = Plane(0, (0, 0), (1, 0), (0, 1)) if series is None else series.plane(at, rows, columns)
        for named in held:
            mask = frame == named.number if labelmap else frame >= threshold
            if plane is None:
                outside += int(mask.any())
                continue
            inside, beside = placed(mask, plane, shape)
            outside += int(beside > 0)
            yield Part(named, plane.frame, inside)
    if outside:
        what = f"has labels in {outside} frames that do not lie on the pixels of its series"
        raise data_error(path, what, _OTHER_GRID)


def slices_of(dataset: Any, path: Path) -> list[tuple[int, Slice]]:
    """Segment number and place of every frame."""
    shared = _first(dataset.get("SharedFunctionalGroupsSequence"))
    frames = dataset.get("PerFrameFunctionalGroupsSequence") or ()
    count = int(dataset.get("NumberOfFrames") or 1)
    if len(frames) != count:
        raise data_error(path, f"says {count} frames and describes {len(frames)}", AGAIN)

    def group(frame: Any, name: str) -> Any:
        own = _first(frame.get(name))
        return own if own is not None else (_first(shared.get(name)) if shared is not None else None)

    found = []
    try:
        for frame in frames:
            of = group(frame, "SegmentIdentificationSequence")
            position, orientation = group(frame, "PlanePositionSequence"), group(frame, "PlaneOrientationSequence")
            measures = group(frame, "PixelMeasuresSequence")
            at = Slice(
                _numbers(position, "ImagePositionPatient", 3),
                _numbers(orientation, "ImageOrientationPatient", 6),
                _numbers(measures, "PixelSpacing", 2),
                (_numbers(measures, "SliceThickness", 1) or (None,))[0],
            )
            found.append((int(of.get("ReferencedSegmentNumber")) if of is not None else 0, at))
    except (TypeError, ValueError, AttributeError):
        raise data_error(path, "describes its frames in a way that cannot be read", AGAIN) from None
    return found


def _first(sequence: Any) -> Any:
    return sequence[0] if sequence else None


def _numbers(item: Any, keyword: str, count: int) -> tuple[float, ...] | None:
    value = item.get(keyword) if item is not None else None
    if value is None or value == "":
        return None
    numbers = tuple(float(one) for one in (value if count > 1 else [value]))
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise ValueError(keyword)
    return numbers


def _frames(dataset: Any, rows: int, columns: int, count: int, path: Path) -> Iterator[NDArray[Any]]:
    """(rows, columns) of every frame, as stored."""
    library = pydicom()
    syntax = dataset.file_meta.get("TransferSyntaxUID") if hasattr(dataset, "file_meta") else None
    data = dataset.get("PixelData")
    if data is None or rows < 1 or columns < 1:
        raise data_error(path, "holds no pixels", AGAIN)
    bits = int(dataset.get("BitsAllocated") or 1)
    if syntax is not None and syntax.is_compressed:
        try:
            yield from library.pixels.iter_pixels(dataset, raw=True)
        except (DataError, MemoryError):
            raise
        except Exception as error:
            told = f"has pixels that cannot be unpacked ({syntax.name}, {type(error).__name__})"
            raise data_error(path, told, "write it without compression") from None
        return
    size = rows * columns
    need = -(-size * count * bits // 8)
    if len(data) < need:
        raise data_error(path, f"is cut short: its pixels need {need} bytes, it holds {len(data)}", AGAIN)
    order = "<" if syntax is None or syntax.is_little_endian else ">"
    for frame in range(count):
        if bits == 1:
            first, last = frame * size, (frame + 1) * size
            packed = np.frombuffer(data, np.uint8, -(-last // 8) - first // 8, first // 8)
            yield np.unpackbits(packed, bitorder="little")[first % 8 : first % 8 + size].reshape(rows, columns)
        else:
            dtype = np.dtype(f"{order}u{bits // 8}")
            yield np.frombuffer(data, dtype, size, frame * size * dtype.itemsize).reshape(rows, columns)
